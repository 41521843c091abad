"""The description that makes a checkpoint open by itself."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdpo.config import RunConfig
from jaxdpo.hub.policy import Policy
from jaxdpo.storage.files import json_digest
from jaxdpo.training.checkpoint import Description


def describe_run(config: RunConfig, policy: Policy, start: str | None = None) -> Description:
    """Returns what a run's checkpoints say of it and of its model.

    Args:
      config: The run.
      policy: The model that it started from.
      start: Digest of that model's weights.
    """
    run = config.model_dump(mode="json")
    # A relative path means nothing from another directory. The base model of adapters is looked for
    # where it was.
    if Path(config.model.path).expanduser().is_dir():
        run["model"]["path"] = str(Path(config.model.path).expanduser().resolve())
    # An export from the checkpoint alone has the dtype that the run's has.
    run["export"]["dtype"] = config.export.dtype or policy.file_dtype
    return Description(run, dict(policy.hf_config), _model_files(policy), start)


def model_digests(policy: Policy) -> dict[str, str]:
    """Returns digests of all in a model folder that changes arithmetic or tokens, but its weights.

    Whatever a later version of the tokenizer's files holds is among them, since they are taken as
    they would be written.

    Args:
      policy: The model that a run starts from.
    """
    found = {"config.json (model.path)": json_digest(dict(policy.hf_config))}
    tokenizer = hashlib.sha256()
    for name, content in sorted(_model_files(policy).items()):
        if name == "generation_config.json":
            found["generation_config.json (model.path)"] = hashlib.sha256(content).hexdigest()
        elif name != "config.json":
            tokenizer.update(name.encode() + b"\0" + content)
    found["tokenizer and chat template (model.path)"] = tokenizer.hexdigest()
    return found


def _model_files(policy: Policy) -> dict[str, bytes]:
    """Returns the files of a model folder without its weights, as they are beside an export."""
    # Made once and kept in memory, so that no save waits for a tokenizer to be written out.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy.chat.tokenizer.save_pretrained(folder)
        _write(folder / "config.json", policy.hf_config)
        _write(folder / "generation_config.json", policy.generation_config or {})
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=2) + "\n", encoding="utf-8")

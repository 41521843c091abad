"""The model card of a trained model: README.md of the folder that it is exported to."""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from jaxdpo.config import RunConfig
from jaxdpo.runs.folder import DATA_FILE
from jaxdpo.training.writers import read_metrics

# Sections of the configuration that decide what the model becomes.
_SECTIONS = ("model", "data", "loss", "reference", "lora", "optimizer", "batch", "training")
# Fields that say where things lie on one machine and nothing else.
_PLACES = ("cache_dir", "folder")
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)*")
_FILES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".gz", ".zst", ".jinja")
# In place of tables, where a checkpoint was copied without the folder of its run.
_APART = "Recorded in the folder of the run."
_PACKAGES = ("jaxdpo", "jax", "flax", "optax", "transformers")


def run_card(config: RunConfig, folder: Path | None, step: int | None = None) -> str:
    """Writes the card of what a run trained; it names no folder of this machine.

    Args:
      config: The run.
      folder: The run folder, for its metrics and the digests of its data; None where a checkpoint
        lies by itself.
      step: The optimizer step that the model is of; None for the last.

    Returns:
      Markdown with the YAML header of the Hugging Face Hub.
    """
    records = [] if folder is None else read_metrics(folder)
    if step is not None:
        records = [record for record in records if record["step"] <= step]
    tested = [record for record in records if record["split"] == "TEST"]
    steps = step or max((record["step"] for record in records), default=0)
    base, objective = _portable(config.model.path), " + ".join(config.loss.type)
    data: Any = _portable(config.data.path)
    sources = [data] if isinstance(data, str) else list(data)
    settings = {
        section: _portable({name: value for name, value in fields.items() if name not in _PLACES})
        for section, fields in config.model_dump(mode="json").items()
        if section in _SECTIONS and fields is not None
    }
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    kind = "a LoRA" if config.lora else "all parameters"
    if config.lora and config.lora.base != "full":
        kind = f"a LoRA on layers in {config.lora.base}"
    return f"""---
{_header(config, base, sources).to_yaml()}
---

# {Path(base).name}, aligned

Trained with jaxdpo from `{base}`: {kind}, {steps} optimizer steps of the objective `{objective}`.

## Data

From {", ".join(f"`{name}`" for name in sources)}.

{_data_table(folder)}

## TEST pairs

{_metrics_table(tested) if folder is not None else _APART}

## Settings

```yaml
{yaml.safe_dump(settings, sort_keys=False).strip()}
```

Versions: {versions}.
"""


def _header(config: RunConfig, base: str, sources: list[str]) -> ModelCardData:
    """Fills in the fields by which the Hub finds models."""
    return ModelCardData(
        library_name="peft" if config.lora and config.export.lora == "adapter" else "transformers",
        pipeline_tag="text-generation",
        base_model=base if _is_on_hub(config.model.path) else None,
        datasets=[name.split(":")[0] for name in sources if _ON_HUB.fullmatch(name)] or None,
        tags=["jaxdpo", "sft" if config.loss.supervised else "dpo", *config.loss.type],
    )


def _data_table(folder: Path | None) -> str:
    if folder is None:
        return _APART
    path = folder / DATA_FILE
    if not path.exists():
        return "An earlier version's run, which did not keep the counts."
    rows = [
        f"| {split} | {of_split['pairs']} | `{of_split['sha256']}` |"
        for split, of_split in json.loads(path.read_text()).items()
    ]
    return "\n".join(["| split | pairs | SHA-256 of the tokenised pairs |", "|---|---|---|", *rows])


def _metrics_table(tests: list[dict[str, Any]]) -> str:
    if not tests:
        return "None were held out."
    before, after = tests[0], tests[-1]
    rows = [
        f"| {name} | {before[name]:.4g} | {after[name]:.4g} |"
        for name in after
        if name in before and name not in ("step", "split")
    ]
    steps = [f"after step {record['step']}" for record in (before, after)]
    return "\n".join([f"| metric | {' | '.join(steps)} |", "|---|---|---|", *rows])


def _is_on_hub(path: str) -> bool:
    return bool(_ON_HUB.fullmatch(path)) and not path.endswith(_FILES) and not Path(path).exists()


def _portable(value: Any) -> Any:
    """Leaves the folders of paths off; names on the Hub stay."""
    if isinstance(value, dict):
        return {_portable(name): _portable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, str) and "/" in value and not _is_on_hub(value):
        return Path(value).name
    return value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"

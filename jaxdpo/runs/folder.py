"""The run folder: one run's files, one process at a time, refused to any other run.

config.yaml     the resolved configuration
inputs.json     digests of the weights and the tokenised pairs
data.json       how many pairs each split has, and their digest
metrics.jsonl   a record a step and an evaluation; curves.png and tensorboard/ show the same
checkpoints/    to continue from
model/          the aligned model, in Hugging Face format
summary.json    written last: the run is finished
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxdpo.config import RunConfig, check_continues, to_yaml
from jaxdpo.errors import UserError
from jaxdpo.storage.continuation import check_unchanged
from jaxdpo.storage.files import replacing

DATA_FILE = "data.json"
# Digits of a digest in messages: enough to tell any two apart that a user will ever meet.
_SHOWN = 12


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, and what is written to them.

    Attributes:
      path: The folder.
      writes: Whether this process writes (the first of a run's processes does).
    """

    path: Path
    writes: bool

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the folder, whole."""
        if self.writes:
            with replacing(self.path / name) as file:
                json.dump(value, file, indent=1, ensure_ascii=False)

    def read_json(self, name: str) -> Any:
        """A file's value, or None if it is not there."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def check_inputs(self, inputs: dict[str, str]) -> None:
        """Remembers what the run was started from, and refuses to continue from anything else.

        Args:
          inputs: Name ↦ digest.

        Raises:
          UserError: Naming the input that changed.
        """
        before = self.read_json("inputs.json")
        if before is None:
            self.write_json("inputs.json", inputs)
            return
        check_unchanged(
            f"{self.path} holds a run that was started from other inputs",
            {name: str(before.get(name))[:_SHOWN] for name in inputs},
            {name: digest[:_SHOWN] for name, digest in inputs.items()},
            "set training.folder to a new folder",
        )


@contextlib.contextmanager
def open_run_folder(config: RunConfig) -> Iterator[RunFolder]:
    """Makes or reopens the run folder, and holds it until the block ends.

    Raises:
      UserError: If it cannot be written, is in use, or holds a run with another configuration.
    """
    path = Path(config.training.folder)
    # The first of a run's processes writes for all.
    if jax.process_index() != 0:
        yield RunFolder(path, writes=False)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a")  # noqa: SIM115 - held until the block ends
    except OSError as error:
        raise UserError(
            f"training.folder {path}: cannot be written: {error.strerror}; choose another folder"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"training.folder {path}: another process is writing this run; wait for it, or "
                "choose another folder"
            ) from None
        resolved = path / "config.yaml"
        if resolved.exists():
            check_continues(config, resolved)
        with replacing(resolved) as file:
            file.write(to_yaml(config))
        yield RunFolder(path, writes=True)

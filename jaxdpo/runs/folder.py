"""The run folder: one run's files, one process at a time, refused to any other run.

config.yaml     the resolved configuration
inputs.json     digests of the weights and the tokenised pairs
data.json       how many pairs each split has, and their digest
metrics.jsonl   a record a step and an evaluation; curves.png and tensorboard/ show the same
answers.jsonl   answers to a few TEST prompts at each evaluation
checkpoints/    to continue from
base/           the model that it started from, without its weights
model/          the aligned model, in Hugging Face format
summary.json    written last: the run is finished

A run whose first step was never taken leaves nothing to continue: its files go when the folder is
opened again, whatever the configuration is then.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxdpo.config import RunConfig, check_continues, to_yaml
from jaxdpo.errors import UserError
from jaxdpo.storage.continuation import check_unchanged
from jaxdpo.storage.files import replacing
from jaxdpo.storage.urls import refuse_url
from jaxdpo.training.writers import METRICS_FILE, read_metrics

DATA_FILE = "data.json"
_LOCK, _CONFIG, _SUMMARY = ".lock", "config.yaml", "summary.json"
# All that a run writes; nothing else is ever removed from its folder.
_FILES = (
    *(_CONFIG, "inputs.json", DATA_FILE, METRICS_FILE, "rejects.jsonl", _SUMMARY, "curves.png"),
    *("completions_before.json", "completions_after.json", "answers.jsonl"),
    *("base", "checkpoints", "model", "tensorboard"),
)
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
        """Reads a file's value; None if it is not there."""
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
    refuse_url(config.training.folder, "training.folder")
    path = Path(config.training.folder)
    # The first of a run's processes writes for all.
    if jax.process_index() != 0:
        yield RunFolder(path, writes=False)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        known = _is_run(path)
        if not known:
            _check_empty(path, config.training.overwrite)
        lock = open(path / _LOCK, "a")  # noqa: SIM115 - held until the block ends
    except OSError as error:
        raise UserError(
            f"training.folder {path}: cannot be written: {error.strerror}; choose another folder"
        ) from None
    with lock:
        try:
            # The system lets go of it when the process dies, however it dies: no lock is stale.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"training.folder {path}: another process is writing this run; wait for it, or "
                "choose another folder"
            ) from None
        resolved = path / _CONFIG
        if known and not _has_begun(path):
            _clear(path)
        elif known and resolved.exists():
            try:
                check_continues(config, resolved)
            except UserError:
                if not config.training.overwrite:
                    raise
                _clear(path)
        # Again each time: what may change when a run continues is kept as it is now.
        with replacing(resolved) as file:
            file.write(to_yaml(config))
        yield RunFolder(path, writes=True)


def _is_run(path: Path) -> bool:
    """Tells whether a folder is a run's; one that was copied has no lock, but its inputs."""
    return (path / _LOCK).exists() or (path / "inputs.json").exists()


def _check_empty(path: Path, overwrite: bool) -> None:
    """Refuses a folder in which something else than a run lies.

    Raises:
      UserError: Naming one of its files.
    """
    others = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    if others and not overwrite:
        raise UserError(
            f"training.folder {path}: holds {others[0]}, and is no run's folder; name a new "
            "folder, or set training.overwrite=true to write the run's files beside it"
        )


def _has_begun(path: Path) -> bool:
    """Tells whether a run took its first step: only then is there something to continue."""
    if (path / _SUMMARY).exists() or any(path.glob("checkpoints/step_*/manifest.json")):
        return True
    return any(record.get("step", 0) > 0 for record in read_metrics(path))


def _clear(path: Path) -> None:
    """Removes a run's files, and leaves whatever else lies in the folder."""
    for name in _FILES:
        found = path / name
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)

"""The run folder: one run's files, one process at a time, refused to any other run.

config.yaml     the resolved configuration
inputs.json     digests of the weights and the tokenised pairs
data.json       how many pairs each split has, and their digest
metrics.jsonl   a record a step and an evaluation; curves.png and tensorboard/ show the same
answers.jsonl   answers to a few TEST prompts at each evaluation
test_pairs.json the TEST pairs with their margins at the last evaluation
run.json        machine, versions, times and lengths
trackers.json   the names by which experiment trackers know the run
report.html     all of it on one page, made at each evaluation and at the end
checkpoints/    to continue from
base/           the model that it started from, without its weights
model/          the aligned model, in Hugging Face format
summary.json    written last: the run is finished

A run whose first step was never taken leaves nothing to continue: its files go when the folder is
opened again, whatever the configuration is then. A run that is opened with more epochs or steps
goes on, a finished one too; until its set-up has succeeded the folder stays as it is.
"""

import contextlib
import fcntl
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdpo.config import RunConfig, check_continues, to_yaml
from jaxdpo.errors import UserError
from jaxdpo.storage.buckets import is_bucket
from jaxdpo.storage.continuation import check_unchanged
from jaxdpo.storage.files import replacing
from jaxdpo.storage.mirror import Mirror
from jaxdpo.storage.noted import DIGESTS, METRIC_CHECKS, read_noted_json, write_noted
from jaxdpo.storage.temporary import is_held
from jaxdpo.storage.urls import refuse_url
from jaxdpo.training.writers import METRICS_FILE, read_metrics

DATA_FILE, FACTS_FILE, TEST_PAIRS_FILE = "data.json", "run.json", "test_pairs.json"
INPUTS_FILE = "inputs.json"
# The name of the digest of the model that a run starts from, in inputs.json.
START_WEIGHTS = "weights (model.path)"
ANSWERS_FILE, REPORT_FILE, SUMMARY_FILE = "answers.jsonl", "report.html", "summary.json"
TRACKERS_FILE = "trackers.json"
_LOCK, _CONFIG = ".lock", "config.yaml"
# All that a run writes; nothing else is ever removed from its folder.
_FILES = (
    *(_CONFIG, INPUTS_FILE, DATA_FILE, METRICS_FILE, "rejects.jsonl", SUMMARY_FILE, "curves.png"),
    *("completions_before.json", "completions_after.json", ANSWERS_FILE),
    *(FACTS_FILE, TEST_PAIRS_FILE, TRACKERS_FILE, "wandb", "mlflow", "mlflow.db"),
    *("base", "checkpoints", "model", "tensorboard"),
    *(DIGESTS, METRIC_CHECKS),
)
# A page that says this of itself in its head was made by a run, and may be made again. The folder
# may hold a page of the same name that is somebody's own.
REPORT_MARK = "jaxdpo run report"
_HEAD = 4096
# Digits of a digest in messages: enough to tell any two apart that a user will ever meet.
_SHOWN = 12


_log = logging.getLogger(__name__)


class Length(NamedTuple):
    """The length of a run, as `training` states it."""

    epochs: float
    max_steps: int | None


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, and what is written to them.

    Attributes:
      path: The folder.
      writes: Whether this process writes (the first of a run's processes does).
      earlier: How long the run was to be before, if it was another length than now.
      mirror: The bucket that the folder lives in, whose local copy `path` is; None: none.
    """

    path: Path
    writes: bool
    earlier: Length | None = None
    mirror: Mirror | None = None

    @property
    def name(self) -> str:
        """The folder as its user knows it: the path, or the URL that it is the local copy of."""
        return str(self.path) if self.mirror is None else self.mirror.url

    def send(self) -> None:
        """Sends what is new to the bucket, if the folder lives in one."""
        if self.mirror is not None:
            self.mirror.push()

    def finished(self) -> dict[str, Any] | None:
        """Returns the summary of a run that is finished; None for one that has steps to take."""
        return None if self.earlier is not None else self.read_json(SUMMARY_FILE)

    def start_digest(self) -> str | None:
        """Returns the digest of the model that the run started from; None if it is not recorded."""
        return (self.read_json(INPUTS_FILE) or {}).get(START_WEIGHTS)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the folder, whole."""
        if self.writes:
            write_noted(self.path / name, json.dumps(value, indent=1, ensure_ascii=False))

    def read_json(self, name: str) -> Any:
        """Reads a file's value; None if it is not there.

        Raises:
          UserError: If it is damaged.
        """
        return read_noted_json(self.path / name)

    def reopen(self, config: RunConfig) -> None:
        """Makes a run that was to have another length one that is not finished.

        Args:
          config: The configuration from now on.
        """
        if self.writes:
            # The summary goes first: while it is there, the folder is one of a finished run.
            for name in (SUMMARY_FILE, "completions_after.json"):
                (self.path / name).unlink(missing_ok=True)
            _write_config(self.path, config)
            self.send()

    def check_inputs(self, inputs: dict[str, str]) -> None:
        """Remembers what the run was started from, and refuses to continue from anything else.

        Args:
          inputs: Name ↦ digest.

        Raises:
          UserError: Naming the input that changed.
        """
        before = self.read_json(INPUTS_FILE)
        if before is None:
            self.write_json(INPUTS_FILE, inputs)
            return
        # A run that a version before began may not have recorded them all.
        known = [name for name in inputs if name in before]
        check_unchanged(
            f"{self.path} holds a run that was started from other inputs",
            {name: shown_digest(str(before[name])) for name in known},
            {name: shown_digest(inputs[name]) for name in known},
            "set training.folder to a new folder",
        )


def shown_digest(digest: str) -> str:
    """Returns as much of a digest as a message shows."""
    return digest[:_SHOWN]


@contextlib.contextmanager
def open_run_folder(config: RunConfig) -> Iterator[RunFolder]:
    """Makes or reopens the run folder, and holds it until the block ends.

    Raises:
      UserError: If it cannot be written, is in use, or holds a run with another configuration.
    """
    mirror = _mirror(config.training.folder)
    path = Path(config.training.folder) if mirror is None else mirror.copy
    # The first of a run's processes writes for all.
    if jax.process_index() != 0:
        yield RunFolder(path, writes=False, earlier=_from_first(None))
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
        except OSError as error:
            if not is_held(error):
                # Lustre without `-o flock`, some FUSE mounts. Training need not end by that.
                _log.warning(
                    "training.folder %s: this file system has no locks (flock: %s), so see to it "
                    "that no other process writes this run",
                    path,
                    error.strerror,
                )
            else:
                raise UserError(
                    f"training.folder {path}: another process is writing this run; wait for it, or "
                    "choose another folder"
                ) from None
        if mirror is not None:
            mirror.pull()
            known = (path / INPUTS_FILE).exists()
            if not known:
                _check_empty(path, config.training.overwrite)
        length = _continued(path, config, known)
        if length is None:
            # Again each time: what may change when a run continues is kept as it is now.
            _write_config(path, config)
        yield RunFolder(path, writes=True, earlier=_from_first(length), mirror=mirror)


def _continued(path: Path, config: RunConfig, known: bool) -> Length | None:
    """Leaves in a folder what can be continued; returns the length of a run that was another one.

    Raises:
      UserError: If the folder holds a run with another configuration.
    """
    resolved = path / _CONFIG
    if known and not _has_begun(path):
        _clear(path)
    if not known or not resolved.exists():
        return None
    now = Length(config.training.epochs, config.training.max_steps)
    overwrite = config.training.overwrite
    try:
        earlier = check_continues(config, resolved).training
    except UserError:
        if not overwrite:
            raise
        _clear(path)
        return None
    length = Length(earlier.epochs, earlier.max_steps)
    if length != now and overwrite:
        _clear(path)
    return None if length == now or overwrite else length


def _write_config(path: Path, config: RunConfig) -> None:
    with replacing(path / _CONFIG) as file:
        file.write(to_yaml(config))


def _from_first(length: Length | None) -> Length | None:
    """Returns what the first of a run's processes passed, on all of them."""
    if jax.process_count() == 1:
        return length
    epochs, max_steps = length or (0.0, None)
    # As words of 32 bits, because JAX would round a float64.
    words = [*np.array([epochs]).view(np.uint32), max_steps or 0]
    shared = multihost_utils.broadcast_one_to_all(np.array(words, np.uint32))
    *halves, steps = np.asarray(shared)
    epochs = float(np.array(halves, np.uint32).view(np.float64)[0])
    return Length(epochs, int(steps) or None) if epochs else None


def _mirror(folder: str) -> Mirror | None:
    """Returns the bucket that a run folder lives in, or None for a local one.

    Raises:
      UserError: For a bucket that several processes would write checkpoints to.
    """
    if not is_bucket(folder):
        refuse_url(folder, "training.folder")
        return None
    if jax.process_count() > 1:
        # Each host writes its shards of a checkpoint into the one folder, which a bucket is not.
        raise UserError(
            f"training.folder {folder}: a run of several processes needs a folder that all of them "
            "share; name one on a shared file system, and copy it to the bucket afterwards"
        )
    return Mirror(folder, last=("manifest.json", SUMMARY_FILE))


def _is_run(path: Path) -> bool:
    """Tells whether a folder is a run's; one that was copied has no lock, but its inputs."""
    return (path / _LOCK).exists() or (path / INPUTS_FILE).exists()


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
    if (path / SUMMARY_FILE).exists() or any(path.glob("checkpoints/step_*/manifest.json")):
        return True
    return any(record.get("step", 0) > 0 for record in read_metrics(path))


def report_path(path: Path) -> Path:
    """Returns where a run's page goes: `report.html`, unless that is a page of somebody else."""
    page = path / REPORT_FILE
    return page if not page.exists() or _is_report(page) else path / f"run_{REPORT_FILE}"


def _is_report(page: Path) -> bool:
    with open(page, encoding="utf-8", errors="replace") as file:
        return REPORT_MARK in file.read(_HEAD)


def _clear(path: Path) -> None:
    """Removes a run's files, and leaves whatever else lies in the folder."""
    report_path(path).unlink(missing_ok=True)
    for name in _FILES:
        found = path / name
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)

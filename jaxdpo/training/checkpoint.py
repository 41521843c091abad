"""Checkpoints: asynchronous, atomic, verified, and open by themselves.

Orbax writes the arrays; a checkpoint counts once its manifest stands beside them, which is written
last, when everything is on disk, and holds every file's size and SHA-256. Of several processes each
digests the files that it wrote itself, and looks them through again before the run continues.

    checkpoints/step_00000200/
      state/          written by Orbax: what trains, the optimizer's state, a moving reference,
                      an average of what trains
      model/          the tokenizer and generation_config.json of the model
      manifest.json   {"step": 200, "run": {the run's configuration}, "model": {config.json},
                       "start": "a digest of the weights that the run started from",
                       "files": {"state/...": {"size": ..., "sha256": ...}, ...}}

Copied elsewhere, such a folder is all that is needed to open what was trained; adapters need their
base model too.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.devices.sharding import agreed
from jaxdpo.errors import UserError, disk_failure
from jaxdpo.storage.manifest import MANIFEST, whole_manifest, write_manifest, write_part
from jaxdpo.storage.orbax import saved_by_matrix, stored_arrays
from jaxdpo.training.state import TrainState

# The folder of a checkpoint that holds the model's tokenizer.
MODEL_FOLDER = "model"
_log = logging.getLogger(__name__)


class CheckpointConfig(BaseModel):
    """Options of checkpoints: how often they are saved, and how many are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=200, ge=1, description="optimizer steps between checkpoints")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept")
    best: str | None = Field(
        default=None,
        description="keep the step that is best on TEST, too: by loss, accuracy, margin, or the "
        "pass rate of a criterion of training.watch, named; null: do not",
    )


@dataclass(frozen=True)
class Description:
    """The model and the run that a checkpoint belongs to, so that it opens without them.

    Attributes:
      run: The run's configuration.
      model: The model's config.json.
      files: Files of its tokenizer, and generation_config.json: name ↦ content.
      start: Digest of the weights that the run started from, or None.
    """

    run: dict[str, Any]
    model: dict[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    start: str | None = None


class Checkpoints:
    """The checkpoints of one run folder.

    Orbax's own manager is not used: it believes what it finds. It restores arrays in which bits
    have flipped without a word, because their chunks carry no checksum, and after a full disk it
    names steps that are not there. Here a checkpoint counts if every file is as the manifest says.

    Args:
      folder: Where they lie; made if missing. What an interrupted save left is removed.
      keep: How many of the newest are kept.
      description: What they belong to; None leaves it out.
      saved: Called in the first process after each save, when it is on disk.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        description: Description | None = None,
        saved: Callable[[], None] = lambda: None,
    ):
        self._folder, self._keep, self._description = folder.absolute(), keep, description
        # One thread: a second save waits for the first, and at most one is lost at any moment.
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        self._newest: int | None = None
        self._saved = saved
        # Seconds that saves have held the steps up, and what `finished` returns.
        self._held, self._finished = 0.0, dict[str, float]()
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.iterdir():
                if leftover.name.startswith("step_") and not (leftover / MANIFEST).exists():
                    shutil.rmtree(leftover)
        _barrier("checkpoints")

    def save(self, step: int, state: TrainState) -> None:
        """Starts to save the state after `step` steps; returns once it is copied off the devices.

        The step that was saved or restored last is not saved again.
        """
        if step == self._newest:
            return
        begun = time.monotonic()
        self.wait()
        self._newest = step
        target = self._step_folder(step)
        with self._explained():
            if jax.process_index() == 0:
                target.mkdir()
            # The other processes write their shards into the same folder, which must be there.
            _barrier(f"save {step}")
            with saved_by_matrix():
                response = ocp.save_async(str(target / "state"), _present(state))
        self._held += time.monotonic() - begun
        self._pending = self._writer.submit(self._commit, response, step, begun)

    def save_best(self, step: int, trainable: Any) -> None:
        """Saves what trains as the best step so far, in the place of the one before it.

        It returns when the save is on disk: what follows, such as the record of the evaluation,
        may rely on it. The optimizer's state is left out, for nothing continues from here.

        Args:
          step: Steps done.
          trainable: The parameters, or with LoRA the adapters.

        Raises:
          UserError: If the disk refuses it.
        """
        self.wait()
        target = self._best_folder(step)
        with self._explained():
            if jax.process_index() == 0:
                # A save of this step that was cut off.
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
            _barrier(f"save best {step}")
            with saved_by_matrix():
                ocp.save(str(target / "state"), {"trainable": trainable})
            if jax.process_index() != 0:
                write_part(target, jax.process_index(), jax.process_count())
            else:
                _describe(target, step, self._description)
                for other in self._folder.glob("best_*"):
                    if other != target:
                        shutil.rmtree(other)
                self._saved()
        _barrier(f"saved best {step}")

    def restore_best(self, step: int, abstract: Any) -> Any:
        """Restores what trains as it was at the best step.

        Args:
          step: The best step, as `save_best` was given it.
          abstract: ShapeDtypeStructs with shardings, of what trains.

        Raises:
          UserError: If it is missing or damaged.
        """
        folder = self._best_folder(step)
        if jax.process_index() == 0 and whole_manifest(folder) is None:
            raise UserError(
                f"{folder}: the best step is missing or damaged, so it cannot be exported; set "
                "export.step=last"
            )
        return ocp.load(str(folder / "state"), {"trainable": abstract})["trainable"]

    def has_best(self, step: int) -> bool:
        """Tells whether a step was saved as the best."""
        return (self._best_folder(step) / MANIFEST).exists()

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          UserError: If it failed, on a full disk for instance; the checkpoint before it stands.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._explained():
                pending.result()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest whole checkpoint, or returns None.

        A damaged one is moved aside, with a warning, for the one before it.

        Args:
          abstract: ShapeDtypeStructs with shardings, of the state to restore.
        """
        index, count = jax.process_index(), jax.process_count()
        while True:
            # One process chooses, because a disk that the others see late may not show them the
            # newest. Each then reads what it may have written itself, all of them at once.
            step = self._newest_committed() if index == 0 else -1
            if count > 1:
                step = int(multihost_utils.broadcast_one_to_all(step))
            if step < 0:
                return None
            folder = self._step_folder(step)
            if index != 0:
                _wait_for(folder / MANIFEST)
            manifest = whole_manifest(folder, index, count)
            if agreed(manifest is not None and manifest["step"] == step):
                break
            if index == 0:
                _move_aside(folder)
            _barrier(f"passed over {step}")
        self._newest = step
        restored = ocp.load(str(self._step_folder(step) / "state"), _present(abstract))
        return TrainState(**restored)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the disk refuses into a message; the checkpoint before stands."""
        try:
            yield
        except Exception as error:
            reason = disk_failure(error)
            if reason is None:
                raise
            raise UserError(
                f"{self._folder}: the checkpoint could not be saved: {reason}; make room or fix "
                "the folder and run the same command again, it continues from the last whole "
                "checkpoint"
            ) from error

    def _best_folder(self, step: int) -> Path:
        return self._folder / f"best_{step:08d}"

    def _step_folder(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"

    def _committed(self) -> list[Path]:
        return sorted(path.parent for path in self._folder.glob(f"step_*/{MANIFEST}"))

    def _commit(self, response: Any, step: int, begun: float) -> None:
        response.result()
        if jax.process_index() != 0:
            write_part(self._step_folder(step), jax.process_index(), jax.process_count())
            return
        size = _describe(self._step_folder(step), step, self._description)
        self._finished = {
            "checkpoint/seconds": time.monotonic() - begun,
            "checkpoint/held_seconds": self._held,
            "checkpoint/gib": size / 2**30,
        }
        self._held = 0.0
        for old in self._committed()[: -self._keep]:
            # The manifest goes first: what is half removed must not count.
            (old / MANIFEST).unlink()
            shutil.rmtree(old)
        self._saved()

    def finished(self) -> dict[str, float]:
        """Returns, once, the time and size of the save that ended last; nothing if none did.

        `checkpoint/seconds` passed from its begin until it was on disk, `checkpoint/held_seconds`
        of them no step was taken, and it has `checkpoint/gib`.
        """
        finished, self._finished = self._finished, {}
        return finished

    def _newest_committed(self) -> int:
        numbers = [folder.name.removeprefix("step_") for folder in self._committed()]
        return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _move_aside(folder: Path) -> None:
    """Moves a damaged checkpoint aside, and says so."""
    aside = folder.with_name(f"damaged_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    _log.warning(
        "%s does not match its manifest; moved to %s, continuing from the checkpoint before it",
        folder,
        aside.name,
    )


def _wait_for(path: Path, limit: float = 30.0) -> None:
    """Waits for a file that another machine sees already; the cache of a network disk may lag."""
    until = time.monotonic() + limit
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)


def _describe(folder: Path, step: int, about: Description | None) -> int:
    """Makes a checkpoint count, and lays what it belongs to beside its arrays.

    Returns:
      Its bytes.
    """
    manifest: dict[str, Any] = {"step": step}
    if about is not None:
        (folder / MODEL_FOLDER).mkdir()
        for name, content in about.files.items():
            (folder / MODEL_FOLDER / name).write_bytes(content)
        manifest |= {"run": about.run, "model": about.model, "start": about.start}
    return write_manifest(folder, manifest, jax.process_count())


def newest_checkpoint(folder: Path) -> Path:
    """Returns the newest checkpoint in a run's `checkpoints/`, by name.

    Raises:
      UserError: If there is none.
    """
    whole = sorted(path.parent for path in folder.glob(f"step_*/{MANIFEST}"))
    if not whole:
        raise UserError(f"{folder}: holds no whole checkpoint")
    return whole[-1]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and verifies the manifest of a checkpoint.

    Args:
      folder: `checkpoints/step_…` of a run folder, or a copy of it.

    Raises:
      UserError: If it is no whole checkpoint, or damaged.
    """
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: is no whole checkpoint")
    manifest = whole_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: damaged, it does not match its manifest; name another one")
    return manifest


def is_checkpoint(folder: Path) -> bool:
    """Tells whether a folder is a checkpoint, whole or damaged."""
    return (folder / MANIFEST).exists() and (folder / "state").is_dir()


def stored_trainable(folder: Path, expected: Any) -> Any:
    """Opens what trained, left on disk in a checkpoint; its average, where one is kept.

    Args:
      folder: `checkpoints/step_…` of a run folder.
      expected: The tree, with the shape and dtype of each array.

    Returns:
      The tree, each array a `Stored`.

    Raises:
      UserError: If its arrays are others.
    """
    # What trains is fp32; the parameters are computed with, and exported, in their own dtype.
    saved: Any = ocp.metadata(str((folder / "state").absolute())).metadata
    part = "average" if "average" in saved else "trainable"
    return stored_arrays(folder / "state", expected, part, rounded=True)


def _present(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if value is not None}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

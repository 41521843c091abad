"""TensorBoard: event files in the run folder, one folder for TRAIN and one for TEST."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdpo.training.trackers.tracker import TrackedRun


class TensorBoard:
    """Writes events that `tensorboard --logdir RUN_FOLDER` shows.

    Args:
      run: The run; events of steps that are done again are marked as void.
    """

    def __init__(self, run: TrackedRun):
        # Imported where it is used: it imports torch wherever torch is installed.
        from tensorboardX import SummaryWriter

        self.id = ""
        folder = run.folder / "tensorboard"
        self._events = {
            split: SummaryWriter(str(folder / split.lower()), purge_step=run.first_step + 1)
            for split in ("TRAIN", "TEST")
        }
        lines = [f"    {name}: {value}" for name, value in run.settings.items()]
        self._events["TRAIN"].add_text("settings", "\n".join(lines), run.first_step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds a scalar for each metric.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        for name, value in metrics.items():
            self._events[split].add_scalar(name, value, step)

    def publish(self, files: Sequence[Path]) -> None:
        """Names the files, which lie beside the events already."""
        self._events["TRAIN"].add_text("files", "\n".join(f"    {file}" for file in files), 0)

    def close(self) -> None:
        """Flushes and closes the event files."""
        for events in self._events.values():
            events.close()

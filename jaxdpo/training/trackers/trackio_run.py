"""Trackio: a local database that `trackio show` reads, or the Space that TRACKIO_SPACE_ID names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdpo.training.trackers.tracker import PROJECT, TrackedRun


class Trackio:
    """Logs to a run of Trackio.

    Args:
      run: The run.
    """

    def __init__(self, run: TrackedRun):
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio: Any = trackio
        self._project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # Trackio finds a run again by its name, and two folders may have the same.
        self.id = run.ids.get("trackio") or f"{run.name}-{os.urandom(3).hex()}"
        self._run: Any = trackio.init(
            project=self._project,
            name=self.id,
            config={name: _simple(value) for name, value in run.settings.items()},
            resume="allow",
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            # Neither a dashboard in the notebook nor measurements of its own: a run has its page.
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Logs every metric under its split's name.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        self._run.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

    def publish(self, files: Sequence[Path]) -> None:
        """Saves the files with the project."""
        for file in files:
            self._trackio.save(str(file), self._project)

    def close(self) -> None:
        """Waits until all is written or sent."""
        self._run.finish()


def _simple(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)

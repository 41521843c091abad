"""The one interface of all trackers, and the run that they are told of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# The project, or experiment, that runs are filed under where the tracker's own variable names none.
PROJECT = "jaxdpo"


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers are told of it.

    Attributes:
      folder: The run folder; trackers that work without a server keep their files in it.
      first_step: Steps that were done before, by a process that was cut off.
      settings: `section.field` ↦ value of the whole configuration.
      ids: Name of a tracker ↦ the name by which it knows this run, from before it was cut off.
    """

    folder: Path
    first_step: int
    settings: Mapping[str, Any]
    ids: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name that people see."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """A place that a run's metrics go to.

    Attributes:
      id: The name by which the tracker finds the run again when it is continued.
    """

    id: str

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Takes a record of metrics.jsonl.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        ...

    def publish(self, files: Sequence[Path]) -> None:
        """Takes the files of a finished run: its page and its curves."""
        ...

    def close(self) -> None:
        """Writes out what is still in memory, and ends the connection."""
        ...

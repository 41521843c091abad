"""TensorBoard: event files in the run folder, one folder for TRAIN and one for TEST."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdpo.training.trackers.tracker import TrackedRun


class TensorBoard:
    """Writes events that `tensorboard --logdir RUN_FOLDER` shows.

    Args:
      run: The run; events of steps that are done again are marked as void.
    """

    def __init__(self, run: TrackedRun):
        self.id = ""
        folder = run.folder / "tensorboard"
        self._events = {
            split: _Events(folder / split.lower(), run.first_step + 1)
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
        self._events[split].add_scalars(metrics, step)

    def publish(self, files: Sequence[Path]) -> None:
        """Names the files, which lie beside the events already."""
        self._events["TRAIN"].add_text("files", "\n".join(f"    {file}" for file in files), 0)

    def close(self) -> None:
        """Flushes and closes the event files."""
        for events in self._events.values():
            events.close()


class _Events:
    """A file of events, written in the thread that calls.

    tensorboardX's own writer has a thread and a queue between processes, which it holds until the
    process ends, and an error of the disk is a traceback of that thread. A few hundred bytes a step
    need neither.

    Args:
      folder: Made if it is not there.
      first_step: Events of this step and later ones, which a run that was cut off may have left in
        other files of the folder, are void.
    """

    def __init__(self, folder: Path, first_step: int):
        # Imported where it is used: it imports torch wherever torch is installed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        # Made when the module is imported, from a description in it.
        messages: Any = event_pb2
        session = messages.SessionLog
        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._event = EventsWriter(str(folder / "events")), messages.Event
        self._add(first_step, session_log=session(status=session.START))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers of a step, by name."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._add(step, summary=scalar(name, value))
        # Seen at once by whoever looks on, and kept when the process is killed.
        self._writer.flush()

    def add_text(self, name: str, text: str, step: int) -> None:
        """Adds a text.

        Args:
          name: Its name.
          text: In Markdown.
          step: The step that it belongs to.
        """
        from tensorboardX.summary import text as of_text

        self._add(step, summary=of_text(name, text))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))

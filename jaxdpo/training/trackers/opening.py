"""Opens the trackers that a run reports to, and keeps it alive when one of them fails."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxdpo.errors import UserError
from jaxdpo.training.trackers.mlflow_run import MLflow
from jaxdpo.training.trackers.tensorboard import TensorBoard
from jaxdpo.training.trackers.tracker import TrackedRun, Tracker
from jaxdpo.training.trackers.trackio_run import Trackio
from jaxdpo.training.trackers.wandb_run import WandB

if TYPE_CHECKING:
    # For its type alone: an environment that holds nothing but trackers can read their modules.
    from jaxdpo.cli.console import OnMetrics

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
# Name ↦ the package that it needs, which is an extra of the same name, and how it is opened.
_TRACKERS: dict[str, tuple[str, Callable[[TrackedRun], Tracker]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WandB),
    "mlflow": ("mlflow", MLflow),
    "trackio": ("trackio", Trackio),
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuses trackers whose package is not installed, before anything is computed.

    Raises:
      UserError: Naming the package.
    """
    for name in names:
        package, _ = _TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"training.report_to: {name} needs the package {package}, which is not installed; "
                f"pip install 'jaxdpo[{name}]', or leave {name} out"
            )


class Function:
    """A tracker that is a function of one's own.

    Args:
      on_metrics: Called with each record.
    """

    def __init__(self, on_metrics: "OnMetrics"):
        self.id, self._on_metrics = "", on_metrics

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Calls the function, with a copy that it may change.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        self._on_metrics(step, split, dict(metrics))

    def publish(self, files: Sequence[Path]) -> None:
        """Passes nothing on: whoever called `fit` has its result."""

    def close(self) -> None:
        """Leaves the function as it is."""


class Trackers:
    """All trackers of a run. One that fails is left out from then on, and the run goes on.

    Args:
      names: The trackers of `training.report_to`.
      run: The run.
      say: Where a failure is said.
      on_metrics: A function of one's own, or None.
    """

    def __init__(
        self,
        names: Sequence[TrackerName],
        run: TrackedRun,
        say: Callable[[str], None],
        on_metrics: "OnMetrics | None" = None,
    ):
        self._say = say
        self._open: dict[str, Tracker] = {}
        for name in names:
            _, opened = _TRACKERS[name]
            with self._guarded(name):
                self._open[name] = opened(run)
        if on_metrics is not None:
            self._open["on_metrics"] = Function(on_metrics)

    @property
    def ids(self) -> dict[str, str]:
        """Name ↦ the name by which a tracker finds the run again; for the run folder."""
        return {name: tracker.id for name, tracker in self._open.items() if tracker.id}

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Gives every tracker a record.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.write(step, split, metrics)

    def publish(self, files: Sequence[Path]) -> None:
        """Gives every tracker the files of a finished run that there are, and closes it."""
        there = [file for file in files if file.is_file()]
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.publish(there)
        self.close()

    def close(self) -> None:
        """Closes every tracker; to be called once or more."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close()
        self._open.clear()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a server or its client does
            self._open.pop(name, None)
            self._say(
                f"warning: {name} failed ({type(error).__name__}: {error}) and gets no more of "
                "this run's metrics; metrics.jsonl has them all"
            )

"""Opens what a run's metrics are written to: metrics.jsonl and the chosen trackers."""

from collections.abc import Callable

from jaxdpo.config import RunConfig, flat
from jaxdpo.runs.folder import TRACKERS_FILE, RunFolder
from jaxdpo.training.trackers.opening import OnMetrics, Trackers
from jaxdpo.training.trackers.tracker import TrackedRun
from jaxdpo.training.writers import MetricWriter


def open_writer(
    config: RunConfig,
    folder: RunFolder,
    first_step: int,
    say: Callable[[str], None],
    on_metrics: OnMetrics | None,
) -> MetricWriter | None:
    """Opens the writer of a run's metrics; None on processes that write nothing.

    Args:
      config: The run.
      folder: Its folder, which remembers by which names trackers know the run.
      first_step: Steps that were done before.
      say: Where the failure of a tracker is said.
      on_metrics: A function of the caller's own, or None.
    """
    if not folder.writes:
        return None
    run = TrackedRun(folder.path, first_step, flat(config), folder.read_json(TRACKERS_FILE) or {})
    trackers = Trackers(config.training.report_to, run, say, on_metrics)
    folder.write_json(TRACKERS_FILE, {**run.ids, **trackers.ids})
    return MetricWriter(folder.path, first_step, trackers)

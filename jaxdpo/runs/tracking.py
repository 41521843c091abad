"""Opens what a run's metrics are written to: metrics.jsonl and the chosen trackers."""

from jaxdpo.cli.console import Reporter
from jaxdpo.config import RunConfig, flat
from jaxdpo.runs.folder import TRACKERS_FILE, RunFolder
from jaxdpo.training.trackers.opening import Trackers
from jaxdpo.training.trackers.tracker import TrackedRun
from jaxdpo.training.writers import MetricWriter


def open_writer(
    config: RunConfig,
    folder: RunFolder,
    first_step: int,
    reporter: Reporter,
) -> MetricWriter | None:
    """Opens the writer of a run's metrics; None on processes that write nothing.

    Args:
      config: The run.
      folder: Its folder, which remembers by which names trackers know the run.
      first_step: Steps that were done before.
      reporter: Says if a tracker fails, and knows a function that is given each record too.
    """
    if not folder.writes:
        return None
    run = TrackedRun(folder.path, first_step, flat(config), folder.read_json(TRACKERS_FILE) or {})
    trackers = Trackers(config.training.report_to, run, reporter.say, reporter.on_metrics)
    try:
        folder.write_json(TRACKERS_FILE, {**run.ids, **trackers.ids})
        return MetricWriter(folder.path, first_step, trackers)
    except BaseException:
        trackers.close()
        raise

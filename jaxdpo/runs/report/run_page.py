"""Makes the page of one run."""

from pathlib import Path

from jaxdpo import __version__
from jaxdpo.pages.page import page_script, render, today
from jaxdpo.pages.settings import settings_table
from jaxdpo.runs.folder import REPORT_MARK, report_path
from jaxdpo.runs.report import sections
from jaxdpo.runs.report.curves import draw_curves
from jaxdpo.runs.report.files import RunFiles, read_run
from jaxdpo.runs.report.sentences import asked, verdict
from jaxdpo.runs.report.sweep import sweep_table
from jaxdpo.storage.files import replacing


def write_report(folder: Path) -> Path:
    """Writes the page of a run into its folder, as its files are now; returns where it is.

    Raises:
      UserError: If the folder holds no run, or a file that cannot be read.
    """
    # Rendered before the file is opened: a page that fails leaves the one before it.
    path = report_path(folder)
    text = run_page(read_run(folder))
    with replacing(path) as file:
        file.write(text)
    return path


def run_page(run: RunFiles) -> str:
    """Returns the page of a run, finished or under way."""
    # First those that the metrics show, then what was said beside them.
    said = [*run.warnings(), *run.facts.get("notes", ())]
    return render(
        "run.html.jinja",
        scripts=[page_script()],
        mark=REPORT_MARK,
        title=f"Run {run.path.name}",
        asked=asked(run),
        verdict=verdict(run),
        finished=run.summary is not None,
        warnings=said,
        curves=draw_curves(run),
        metrics=sections.metrics_table(run),
        answers=sections.answers(run),
        completions=sections.completions(run),
        pairs=sections.pairs_table(run),
        data=sections.data_table(run),
        lengths=sections.lengths(run),
        settings=settings_table(run.config),
        lineage=sections.lineage(run),
        sessions=sections.sessions(run),
        evaluations=sections.evaluations(run),
        sweep=None if run.sweep is None else sweep_table(run.sweep),
        about=f"jaxdpo {__version__}, {today()}. The figures are those of metrics.jsonl and "
        "summary.json beside this page.",
    )

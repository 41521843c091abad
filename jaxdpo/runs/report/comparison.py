"""Makes the page that compares several runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jaxdpo import __version__
from jaxdpo.cli.progress import spoken
from jaxdpo.config import flat
from jaxdpo.pages.cells import Table, figure, interval, number
from jaxdpo.pages.lines import Curve, draw_lines, smoothed
from jaxdpo.pages.page import page_script, render, today
from jaxdpo.runs.folder import REPORT_MARK
from jaxdpo.runs.report.curves import ends, points
from jaxdpo.runs.report.files import RunFiles, read_run
from jaxdpo.runs.report.sentences import first_and_last, verdict
from jaxdpo.storage.files import replacing

_COMPARED = ("rewards/accuracies", "rewards/margins", "loss", "kl", "logps/chosen")
# Split, metric, title and unit of each picture.
_PICTURES = (
    ("TEST", "rewards/accuracies", "TEST pairs ranked as people did", "share of pairs"),
    ("TEST", "loss", "TEST loss", "nats a pair"),
    ("TEST", "rewards/margins", "TEST reward margin", "nats × β"),
    ("TEST", "logps/chosen", "TEST log-probability of chosen answers", "nats an answer"),
    ("TEST", "kl", "TEST distance from the reference (KL)", "nats an answer"),
    ("TRAIN", "loss", "TRAIN loss, smoothed", "nats a pair"),
    ("TRAIN", "grad_norm", "Gradient norm, smoothed", "before clipping"),
)
# Curves in one picture; with more, colours would repeat.
_MOST_CURVES = 6


def write_comparison(folders: Sequence[Path], out: Path) -> None:
    """Writes the page that compares runs.

    Args:
      folders: The run folders.
      out: The page.

    Raises:
      UserError: If one of them holds no run.
    """
    text = comparison_page([read_run(folder) for folder in folders])
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write(text)


def comparison_page(runs: Sequence[RunFiles]) -> str:
    """Returns the page that compares runs."""
    names = _names(runs)
    return render(
        "comparison.html.jinja",
        mark=REPORT_MARK,
        scripts=[page_script()],
        title=f"{len(runs)} runs compared",
        verdict=_best(runs, names),
        figures=_figures(runs, names),
        curves=draw_compared(runs, names),
        left_out=names[_MOST_CURVES:],
        settings=_differences(runs, names),
        verdicts=[(name, verdict(run)) for name, run in zip(names, runs, strict=True)],
        warnings=[(n, text) for n, run in zip(names, runs, strict=True) for text in run.warnings()],
        about=f"jaxdpo {__version__} report, {today()}",
    )


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Returns the shortest ends of the runs' paths that tell them apart."""
    # Runs are often called the same in folders that differ: runs/a/dpo, runs/b/dpo.
    for depth in range(1, 20):
        names = ["/".join(run.path.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]


def _best(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Says which run does best on TEST, and whether another may be as good."""
    compared = [pair[1] if (pair := first_and_last(run)) else None for run in runs]
    if any(record is None for record in compared):
        return "Not every run has TEST pairs, so none is called the best."
    digests = {(run.data.get("TEST") or {}).get("sha256") for run in runs}
    if len(digests) > 1:
        # Figures on other pairs are no comparison.
        return "The runs have different TEST pairs, so none is called the best."
    # Losses of different kinds have no common scale; shares of pairs do.
    records: list[dict[str, Any]] = [record for record in compared if record is not None]
    metric = _COMPARED[0] if all(_COMPARED[0] in record for record in records) else "loss"
    sign = -1 if metric == "loss" else 1
    order = sorted(range(len(runs)), key=lambda i: sign * records[i][metric], reverse=True)
    best = order[0]
    said = f"{names[best]} does best on TEST: {metric} {figure(records[best][metric])}"
    end = records[best].get(f"{metric}_{'high' if sign < 0 else 'low'}")
    if end is None:
        return f"{said}."
    # By the best one's interval alone: cautious, as the others have intervals too.
    near = [names[i] for i in order[1:] if sign * records[i][metric] >= sign * end]
    if near:
        return f"{said}. Within its 95% interval, and perhaps as good: {', '.join(near)}."
    return f"{said}, and no other run lies within its 95% interval."


def _figures(runs: Sequence[RunFiles], names: Sequence[str]) -> Table:
    rows = []
    for name, run in zip(names, runs, strict=True):
        last = pair[1] if (pair := first_and_last(run)) else {}
        step = last.get("step") or max((r["step"] for r in run.records), default=0)
        seconds = sum(each.get("seconds", 0.0) for each in run.facts.get("sessions", ()))
        rows.append(
            (
                name,
                number(step, f"{step} of {run.num_steps}"),
                *(_cell(last, metric) for metric in _COMPARED),
                number(len(run.warnings())),
                number(seconds, spoken(seconds)) if seconds else number(None),
            )
        )
    caption = "TEST figures of the exported step, with 95% intervals; a column's name sorts."
    header = ("run", "step", *_COMPARED, "warnings", "time")
    return Table(caption, header, rows, sortable=True)


def _cell(record: dict[str, Any], metric: str) -> Markup:
    if metric not in record:
        return number(None)
    return interval(record[metric], record.get(f"{metric}_low"), record.get(f"{metric}_high"))


def draw_compared(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Markup]:
    """Draws the curves of several runs together, of the first six where there are more.

    Args:
      runs: The runs.
      names: Their names in the legends.
    """
    drawn = []
    for split, metric, title, unit in _PICTURES:
        curves = []
        for k, (name, run) in enumerate(zip(names[:_MOST_CURVES], runs, strict=False)):
            records = run.split(split)
            found = points(records, metric)
            if not found:
                continue
            test = split == "TEST"
            kind = "dots" if test else "line"
            shown = found if test else smoothed(found)
            curves.append(Curve(name, shown, ends(records, metric), k, kind))
        if curves:
            drawn.append(draw_lines(title, unit, curves))
    return drawn


def _differences(runs: Sequence[RunFiles], names: Sequence[str]) -> Table:
    """Returns the settings in which the runs differ, a row each."""
    settings = [flat(run.config) for run in runs]
    # The union: a version that knew fewer settings wrote fewer.
    fields = [field for field in dict.fromkeys(f for each in settings for f in each)]
    differing = [f for f in fields if len({str(each.get(f)) for each in settings}) > 1]
    rows = [
        (field, *(str(each.get(field)) for each in settings))
        for field in differing
        if field != "training.folder"
    ]
    caption = "Settings in which the runs differ" if rows else "The runs have the same settings"
    return Table(caption, ("setting", *names), rows)

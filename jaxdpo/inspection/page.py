"""The report of an inspection as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from jaxdpo import __version__
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.inspection.findings import SHOWN, Finding
from jaxdpo.inspection.places import Places
from jaxdpo.inspection.shortcuts import Shortcut
from jaxdpo.inspection.tokens import Seen, Tokenized, length_lines, part_names
from jaxdpo.pages.cells import Table
from jaxdpo.pages.histograms import draw_histograms
from jaxdpo.pages.page import render, today
from jaxdpo.pages.settings import settings_table
from jaxdpo.printable import visible


def page(
    config: InspectConfig,
    summary: str,
    counts: Mapping[str, str],
    findings: Sequence[Finding],
    shortcuts: Sequence[Shortcut],
    tokenized: Tokenized | None,
) -> str:
    """Returns the whole report as HTML.

    Args:
      config: The data, and how it was inspected.
      summary: What reading said, in lines.
      counts: Counts by what was counted.
      findings: What was found, with all its places.
      shortcuts: The trivial rules that were tried.
      tokenized: The pairs as tokens, if a tokenizer was named.
    """
    return render(
        "inspection.html.jinja",
        title=config.data.name(),
        verdict=_verdict(findings),
        summary=summary,
        findings=_findings(findings),
        shortcuts=_shortcuts(shortcuts),
        counts=Table("Pairs and lines by what was counted", ("", ""), list(counts.items())),
        tokens=None if tokenized is None else _tokens(tokenized),
        settings=settings_table(config),
        about=f"jaxdpo {__version__} inspect, {today()}",
    )


def _verdict(findings: Sequence[Finding]) -> str:
    if not findings:
        return "Nothing was found that is wrong with this data."
    first, *rest = findings
    others = f" {len(rest)} more kinds of problem are listed below." if len(rest) > 1 else ""
    if len(rest) == 1:
        others = " One more kind of problem is listed below."
    return f"{first.count:,} {first.title}. To fix it: {first.remedy}.{others}"


def _findings(findings: Sequence[Finding]) -> Table | None:
    if not findings:
        return None
    # Their number has a column of its own.
    rows = [
        (f.code, f"{f.count:,}", f.title.removeprefix("pairs: "), _places(f.where), f.remedy)
        for f in findings
    ]
    return Table("", ("kind", "pairs", "what", "where", "what to do"), rows)


def _places(where: Places) -> Markup:
    """Returns the first places, and all of them where one clicks."""
    shown = escape(visible(", ".join(where[:SHOWN])))
    if len(where) <= SHOWN:
        return shown
    # Every place is written out, so that the browser's search finds a line by its number.
    every = Markup("<br>").join(visible(place) for place in where)
    return Markup(
        '{}<details><summary>all {}</summary><div class="places">{}</div></details>'
    ).format(shown, f"{len(where):,}", every)


def _shortcuts(shortcuts: Sequence[Shortcut]) -> Table | None:
    if not shortcuts:
        return None
    caption = (
        "Rules that read neither the question nor the sense of an answer. One that is right far "
        "more often than a coin (50%) is what the model will learn first."
    )
    rows = [(s.name, s.share(), s.detail) for s in shortcuts]
    return Table(caption, ("rule", "predicts the chosen answer for", "what it learned"), rows)


def _tokens(tokenized: Tokenized) -> dict[str, Any]:
    lengths = tokenized.lengths
    columns = list(zip(part_names(lengths), lengths.T, strict=True))
    return {
        "lengths": Table(
            "Half of the pairs are shorter than the median, 95% shorter than the next figure.",
            ("tokens", "median", "95%", "longest"),
            length_lines(lengths),
        ),
        "histograms": draw_histograms(columns, "tokens", "pairs"),
        "forecast": tokenized.forecast,
        "shown": [{"heading": _heading(seen), "spans": seen.spans} for seen in tokenized.shown],
    }


def _heading(seen: Seen) -> str:
    cut = f", {seen.cut} prompt tokens cut" if seen.cut else ""
    note = "" if seen.outcome == "whole" else f" ({seen.outcome.replace('_', ' ')}{cut})"
    return f"{seen.source}{note}"

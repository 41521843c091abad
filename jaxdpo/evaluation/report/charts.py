"""The chart of an evaluation: a group of bars for each criterion, a bar for each model."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.results import Results
from jaxdpo.storage.files import replacing

# Told apart by people who see no red or green, and in grey (Okabe and Ito's palette).
_COLOURS = ("#999999", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")


def write_charts(comparison: Results, folder: Path) -> None:
    """Writes `chart.png` and `chart.svg`."""
    for kind in ("png", "svg"):
        with replacing(folder / f"chart.{kind}", "wb") as file:
            file.write(chart(comparison, kind))


def chart(comparison: Results, kind: str) -> bytes:
    """Draws the chart as a PNG or SVG file; the same bytes for the same figures.

    Args:
      comparison: The figures.
      kind: "png" or "svg".
    """
    # Imported here: it takes a second. Figure and not pyplot, which keeps every figure, and whose
    # back end may want a screen.
    import matplotlib
    from matplotlib.figure import Figure

    found = panels(comparison)
    groups = [max(len(names), 1) for _, names, _ in found]
    # Without a salt the ids in an SVG are random. Text stays text: it is read, searched and small.
    with matplotlib.rc_context({"svg.hashsalt": "jaxdpo", "svg.fonttype": "none"}):
        width = 2.0 + sum(groups) * (0.6 + 0.55 * len(comparison.models))
        figure = Figure(figsize=(max(width, 4.0), 3.8), layout="constrained")
        axes = figure.subplots(1, len(found), squeeze=False, width_ratios=groups)[0]
        for axis, (title, names, estimates) in zip(axes, found, strict=True):
            _draw_panel(axis, list(comparison.models), names, estimates)
            axis.set_title(title, fontsize=10, loc="left")
            if title == "pass rate":
                axis.set_ylim(0, 1.12)
                axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        figure.suptitle(
            f"{' vs '.join(comparison.models)}: {len(comparison.rows)} prompts, 95% intervals",
            fontsize=11,
        )
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, fontsize=9, frameon=False, ncols=3, loc="outside lower center"
        )
        nameless = {"Date": None, "Creator": None} if kind == "svg" else {}
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata=nameless)
    return file.getvalue()


def panels(comparison: Results) -> list[tuple[str, list[str], dict[str, list[Estimate]]]]:
    """Returns title, criteria and model ↦ estimates of each panel: pass rates, then scores.

    Scores have scales of their own, so each criterion that only scores has a panel.
    """
    models = comparison.models
    passing, scoring = [], []
    for name in comparison.criteria:
        rates = [comparison.rate(model, name).pass_rate for model in models]
        (scoring if all(math.isnan(rate.value) for rate in rates) else passing).append(name)
    panels = []
    if passing or not scoring:
        rates = {m: [comparison.rate(m, name).pass_rate for name in passing] for m in models}
        panels.append(("pass rate", passing, rates))
    for name in scoring:
        scores = {model: [comparison.rate(model, name).mean_score] for model in models}
        panels.append((f"mean score: {name}", [name], scores))
    return panels


def _draw_panel(
    axis: Any, models: Sequence[str], names: Sequence[str], estimates: dict[str, list[Estimate]]
) -> None:
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        at = [place + (number - (len(models) - 1) / 2) * width for place in range(len(names))]
        values = [estimate.value for estimate in estimates[model]]
        # Rounding can put an interval's end a hair beyond the value, which matplotlib refuses.
        below = [max(0.0, estimate.value - estimate.low) for estimate in estimates[model]]
        above = [max(0.0, estimate.high - estimate.value) for estimate in estimates[model]]
        colour = _COLOURS[number % len(_COLOURS)]
        axis.bar(
            at, values, width * 0.92, yerr=(below, above), capsize=3, color=colour, label=model
        )
        share = all(0 <= value <= 1 for value in values if not math.isnan(value))
        for place, value, margin in zip(at, values, above, strict=True):
            if not math.isnan(value):
                shown, over = f"{value:.0%}" if share else f"{value:.2f}", (place, value + margin)
                axis.annotate(
                    shown, over, (0, 3), textcoords="offset points", ha="center", fontsize=8
                )
    axis.set_xticks(range(len(names)), names, fontsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)

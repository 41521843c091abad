"""The curves of a run: TRAIN raw and smoothed, TEST with its intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jaxdpo.pages.lines import Curve, draw_lines, smoothed
from jaxdpo.runs.report.files import RunFiles
from jaxdpo.training.best_step import PASS_RATE

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
      title: The name of what it shows.
      unit: Its unit.
      metrics: Metric ↦ its name in the legend; each has a colour.
    """

    title: str
    unit: str
    metrics: dict[str, str]


# In the order in which they are read: whether it learns, then by which means, then at what price.
_PANELS = (
    Panel("Loss", "nats a pair", {"loss": ""}),
    Panel("Reward margin", "nats × β", {"rewards/margins": ""}),
    Panel("Pairs ranked as people did", "share of pairs", {"rewards/accuracies": ""}),
    Panel(
        "Log-probability of the answers",
        "nats an answer",
        {"logps/chosen": "chosen", "logps/rejected": "rejected"},
    ),
    Panel(
        "Reward of the answers",
        "nats × β",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    ),
    Panel("Distance from the reference (KL)", "nats an answer", {"kl": ""}),
    Panel("Gradient norm", "before clipping", {"grad_norm": ""}),
    Panel("Learning rate", "a step", {"learning_rate": ""}),
    Panel("Token accuracy", "share of tokens", {"token_accuracy": ""}),
    Panel("Entropy", "nats a token", {"entropy": ""}),
    Panel(
        "Length of the answers",
        "tokens",
        {
            "answers/tokens": "the model's",
            "lengths/chosen": "chosen",
            "lengths/rejected": "rejected",
        },
    ),
    Panel(
        "Broken answers",
        "share of answers",
        {
            "answers/unfinished": "do not end",
            "answers/repetitive": "repeat",
            "answers/empty": "empty",
        },
    ),
    Panel("Speed", "pairs a second", {"pairs_per_second": ""}),
)


def draw_curves(run: RunFiles) -> list[Markup]:
    """Draws every panel that the run has figures for."""
    train, test = run.split("TRAIN"), run.split("TEST")
    # A panel without figures is left out: supervised runs have no rewards, TRAIN has no answers.
    panels = [*_PANELS, *_pass_rates(test)]
    drawn = [(panel, _curves(panel, train, test)) for panel in panels]
    return [draw_lines(p.title, p.unit, curves) for p, curves in drawn if curves]


def _pass_rates(test: Records) -> list[Panel]:
    # Criteria are named by whoever runs it, so their metrics are known from the records alone.
    names = {name for record in test for name in record if name.startswith(PASS_RATE)}
    rates = sorted(name for name in names if not name.endswith(("_low", "_high")))
    return [
        Panel(f"Pass rate: {name.removeprefix(PASS_RATE)}", "share of the answers", {name: ""})
        for name in rates
    ]


def _curves(panel: Panel, train: Records, test: Records) -> list[Curve]:
    found = []
    for number, (metric, name) in enumerate(panel.metrics.items()):
        alone = len(panel.metrics) == 1
        raw = points(train, metric)
        # Lengths of TRAIN answers are those of the batch, and say nothing about the model.
        on_train = bool(raw) and not metric.startswith("lengths/")
        if on_train:
            calm = smoothed(raw)
            if calm != raw:
                found.append(Curve("", raw, colour=number, kind="faint"))
            found.append(Curve(name or "TRAIN", calm, colour=number, said=f"{name} TRAIN".strip()))
        # An evaluation is few points with known intervals: dots, which nothing smooths.
        if held_out := points(test, metric):
            # Where each metric has a colour, TEST differs by its dots, and the legend names one.
            colour = 1 if alone else number
            named = name if not on_train else ("TEST" if alone else "")
            said = f"{name} TEST".strip()
            found.append(Curve(named, held_out, ends(test, metric), colour, "dots", said))
    return found


def points(records: Records, metric: str) -> list[tuple[float, float]]:
    """Returns the steps and values of a metric, where it was measured."""
    return [(record["step"], record[metric]) for record in records if metric in record]


def ends(records: Records, metric: str) -> list[tuple[float, float, float]]:
    """Returns the steps and the ends of a metric's 95% intervals, where there are any."""
    low, high = f"{metric}_low", f"{metric}_high"
    return [(r["step"], r[low], r[high]) for r in records if low in r and high in r]

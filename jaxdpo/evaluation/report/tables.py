"""The figures of an evaluation as rows of text, for a terminal, a page or a notebook."""

import math
from typing import NamedTuple

from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.results import SIGNIFICANT, Rate, Results, Versus


class Table(NamedTuple):
    """A table of text."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(comparison: Results) -> list[Table]:
    """Returns rates, comparisons of two models, head to head, and lengths, if there are any."""
    found = []
    if comparison.rates:
        rates = [
            (r.criterion, r.model, share(r.pass_rate), number(r.mean_score), _judged(r))
            for r in comparison.rates
        ]
        header = ("criterion", "model", "pass rate", "mean score", "judged")
        found.append(Table("Each model, with 95% intervals", header, rates))
    if comparison.versus:
        header = ("criterion", "models", "difference", "fewer failures", "p", "")
        versus = [
            (v.criterion, f"{v.first} → {v.second}", _difference(v), *_verdict(v))
            for v in comparison.versus
        ]
        title = "Each two models on the same prompts; p by McNemar or paired t, after Holm"
        found.append(Table(title, header, versus))
    if comparison.head_to_head:
        header = ("models", "wins", "losses", "ties", "not judged", "win rate", "p")
        duels = [
            (
                f"{d.second} over {d.first}",
                *(str(count) for count in (d.wins, d.losses, d.ties, d.failed)),
                share(d.win_rate),
                f"{d.adjusted:.3g}",
            )
            for d in comparison.head_to_head
        ]
        found.append(Table("Head to head, both orders asked, ties half", header, duels))
    lengths = [
        (model, number(words), str(comparison.cut_off[model]))
        for model, words in comparison.words.items()
    ]
    return [*found, Table("Lengths", ("model", "mean words", "cut off"), lengths)]


def share(estimate: Estimate, signed: bool = False) -> str:
    """Returns a share such as `71% (58% to 81%)`, or a dash where it is undefined."""
    if math.isnan(estimate.value):
        return "–"
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.0%} ({estimate.low:{sign}.0%} to {estimate.high:{sign}.0%})"


def number(estimate: Estimate, signed: bool = False) -> str:
    """Returns a number such as `5.2 (4.9 to 5.5)`, or a dash where it is undefined."""
    if math.isnan(estimate.value):
        return "–"
    sign = "+" if signed else ""
    # One score alone has a mean and no interval.
    if math.isnan(estimate.low):
        return f"{estimate.value:{sign}.3g}"
    return f"{estimate.value:{sign}.3g} ({estimate.low:{sign}.3g} to {estimate.high:{sign}.3g})"


def _judged(rate: Rate) -> str:
    return f"{rate.judged}" + (f", {rate.unjudged} could not be" if rate.unjudged else "")


def _difference(versus: Versus) -> str:
    shown = number if versus.counts is None else share
    return shown(versus.difference, signed=True)


def _verdict(versus: Versus) -> tuple[str, str, str]:
    # No difference shown is not "equal": with more prompts there may be one.
    different = versus.adjusted < SIGNIFICANT
    better = versus.second if versus.difference.value > 0 else versus.first
    said = f"{better} is better" if different else "no difference shown"
    return share(versus.fewer_failures), f"{versus.adjusted:.3g}", said

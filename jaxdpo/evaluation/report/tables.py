"""The figures of an evaluation as rows of text, for a terminal, a page or a notebook."""

import math
from typing import NamedTuple

from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.results import SIGNIFICANT, Rate, Results, Versus

# Titles are for whoever reads a table for the first time, and name the test for who wants it.
_RATES = (
    "Each model. In parentheses the 95% interval: other prompts of the same kind would give a "
    "figure in this range"
)
_VERSUS = (
    "Each two models on the same prompts. p is how often chance alone would show such a "
    f"difference: below {SIGNIFICANT} one model is called better (McNemar's test, or a paired "
    "t-test of scores, after Holm for the number of comparisons)"
)
_HEAD_TO_HEAD = (
    "Head to head: the judge saw both answers in both orders; an answer wins if it is preferred in "
    "both, and a tie counts half"
)
_LENGTHS = "Lengths; cut off are answers that ended at the most tokens allowed"


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
        found.append(Table(_RATES, header, rates))
    if comparison.versus:
        header = ("criterion", "models", "difference", "fewer failures", "p", "verdict")
        versus = [
            (v.criterion, f"{v.first} → {v.second}", _difference(v), *_verdict(v))
            for v in comparison.versus
        ]
        found.append(Table(_VERSUS, header, versus))
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
        found.append(Table(_HEAD_TO_HEAD, header, duels))
    lengths = [
        (model, number(words), str(comparison.cut_off[model]))
        for model, words in comparison.words.items()
    ]
    return [*found, Table(_LENGTHS, ("model", "mean words", "cut off"), lengths)]


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

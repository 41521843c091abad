"""Other margins: how many pairs the same judgements would make with them."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jaxdpo.data.generations import Generation
from jaxdpo.evaluation.best import mean_score
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.preferences import FeedbackConfig

# Margins that are tried: one is as good as another, and each reads the judgements once more.
_TRIED = 3


def pairs_by_margin(path: Path, margins: Sequence[float]) -> dict[float, int]:
    """Counts the pairs that judgements make with each of several margins.

    Args:
      path: The file of judgements.
      margins: The margins.
    """
    # By the very function that makes the pairs, so that what is promised is what will be made.
    return {
        margin: len(
            collect("criteria", str(path), FeedbackConfig(margin=margin, on_error="skip")).pairs
        )
        for margin in margins
    }


def possible_margins(
    answers: Sequence[Generation], judgements: Sequence[dict[str, Judgement]]
) -> list[float]:
    """Returns a few margins that lie between the differences that there are.

    >>> possible_margins([], [])
    []

    Args:
      answers: Answers to any prompts.
      judgements: Criterion ↦ judgement, for each answer.

    Returns:
      At most three, in ascending order: the least difference of any two answers to one prompt,
      which pairs all that differ, and the quartiles above it.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for answer, said in zip(answers, judgements, strict=True):
        if (value := mean_score(said)) is not None:
            values[answer.id].append(value)
    differences = sorted(
        _rounded_down(abs(a - b))
        for of_prompt in values.values()
        for a, b in itertools.combinations(of_prompt, 2)
        if a != b
    )
    if not differences:
        return []
    last = len(differences) - 1
    # The least, the median and the upper quartile: equal where criteria only pass and fail.
    chosen = {differences[round(last * part)] for part in (0.0, 0.5, 0.75)}
    return sorted(margin for margin in chosen if margin > 0)[:_TRIED]


def _rounded_down(value: float) -> float:
    """Returns a number of two digits that is not above the value: fit to be typed by hand."""
    # Never rounded up, not even by the last bit of a float: 0.3 - 0.1 is below 0.2, and a margin of
    # 0.2 would leave that pair out.
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / scale) * scale:.2g}")


def margin_advice(counts: dict[float, int], now: int) -> str:
    """Says how many pairs other margins would give.

    >>> margin_advice({0.5: 120, 1.0: 80}, 80)
    'margin=0.5 would give 120 pairs, 40 more'

    Args:
      counts: Margin ↦ pairs.
      now: Pairs that were made.

    Returns:
      One line; empty where no other margin gives more.
    """
    more = {margin: count for margin, count in counts.items() if count > now}
    return "; ".join(
        f"margin={margin:g} would give {count} pairs, {count - now} more"
        for margin, count in more.items()
    )

"""Models compared on the same prompts: intervals at 95% and tests that pair their answers.

Every prompt counts once, so what is compared is drawn independently; several answers of one model
to one prompt would not be.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxdpo.evaluation.agreement import UNDEFINED, Estimate, share

_RESAMPLES = 9999
# With fewer failures to begin with, the interval would be from 0 to 1.
_FEWEST_FAILURES = 5


class Paired(NamedTuple):
    """Two models judged on the same prompts, passed or failed.

    Attributes:
      both: Number of prompts on which both passed.
      first_only: Number on which the first passed alone.
      second_only: Number on which the second passed alone.
      neither: Number on which both failed.
    """

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def prompts(self) -> int:
        """The number of all prompts."""
        return sum(self)


def pair_up(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Counts the outcomes of two models' answers to the same prompts.

    >>> pair_up([True, True, False], [True, False, False])
    Paired(both=1, first_only=1, second_only=0, neither=1)
    """
    outcomes = list(zip(first, second, strict=True))
    return Paired(*(outcomes.count((a, b)) for a in (True, False) for b in (True, False)))


def mcnemar(paired: Paired) -> float:
    """Computes the p-value of the exact test that both models pass equally often (McNemar 1947).

    If they do, either is as likely to be the one that passes where they differ.
    """
    # Prompts on which both passed or both failed say nothing about a difference.
    return sign_test(paired.first_only, paired.second_only)


def sign_test(wins: int, losses: int) -> float:
    """Computes the two-sided p-value of wins and losses that are equally likely; ties aside."""
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses).pvalue)


def difference(paired: Paired) -> Estimate:
    """Computes how much more often the second model passes than the first.

    The interval is Newcombe's for paired proportions, from each model's own Wilson interval and
    their correlation (Newcombe 1998, Statistics in Medicine 17:2635, method 10).
    """
    n = paired.prompts
    if not n:
        return UNDEFINED
    both, first_only, second_only, neither = paired
    first, second = share(both + first_only, n), share(both + second_only, n)
    margins = (both + first_only, second_only + neither, both + second_only, first_only + neither)
    # The correlation of the two models' outcomes: prompts that are easy for one are easy for the
    # other, which makes the difference more certain than two independent samples would.
    phi = 0.0
    if all(margins):
        cross = both * neither - first_only * second_only
        # Corrected for continuity, as method 10 has it, where the models agree.
        cross = max(cross - n / 2, 0) if cross > 0 else cross
        phi = cross / math.sqrt(math.prod(margins))
    below = (second.value - second.low, first.high - first.value)
    above = (second.high - second.value, first.value - first.low)
    value = second.value - first.value
    low, high = (math.sqrt(a * a - 2 * phi * a * b + b * b) for a, b in (below, above))
    return Estimate(value, max(-1.0, value - low), min(1.0, value + high))


def fewer_failures(paired: Paired, seed: int = 0) -> Estimate:
    """Computes the share by which the second model fails less often: 0.4 is 40% fewer failures.

    The interval is from 9,999 resamples of the prompts, the same for the same counts. Where the
    second model never fails its lower end is from Wilson's upper bound on how often it does. It is
    undefined where the first model has fewer than five failures.
    """
    n = paired.prompts
    failures = paired.second_only + paired.neither
    if failures < _FEWEST_FAILURES:
        return UNDEFINED
    # Resampling whole prompts is drawing the four counts from a multinomial: 9,999 draws at once.
    drawn = np.random.default_rng(seed).multinomial(n, np.array(paired) / n, size=_RESAMPLES)
    _, first_only, second_only, neither = drawn.T
    before, after = second_only + neither, first_only + neither
    # A resample without failures of the first model has no such share.
    decrease = 1 - after[before > 0] / before[before > 0]
    low, high = np.quantile(decrease, [0.025, 0.975])
    left = paired.first_only + paired.neither
    if not left:
        # No resample has a failure either, which is no proof that there are none to come. Wilson's
        # bound says how many there may be: z² / (n + z²) of the answers, one in seven of 24.
        low = 1 - share(0, n).high / share(failures, n).value
    value = 1 - left / failures
    return Estimate(value, float(low), float(high))


def win_rate(wins: int, losses: int, ties: int) -> Estimate:
    """Computes the share of the comparisons that were won, a tie counting half.

    The interval is Wilson's score interval for that share.

    Args:
      wins: Comparisons that were won.
      losses: Comparisons that were lost.
      ties: Comparisons without a winner.
    """
    # Ties vary less than wins and losses do, so with them the interval is wider than it need be,
    # never narrower.
    return share(wins + ties / 2, wins + losses + ties)


class MeanDifference(NamedTuple):
    """Mean difference of two models' scores, and the p-value of there being none."""

    mean: Estimate
    p_value: float


def score_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Computes the mean difference of scores on the same prompts, by the paired t-test."""
    differences = np.subtract(second, first)
    if len(differences) < 2:
        return MeanDifference(UNDEFINED, 1.0)
    mean = float(differences.mean())
    # Without variance the t statistic divides by zero.
    if np.ptp(differences) == 0:
        return MeanDifference(Estimate(mean, mean, mean), 1.0 if mean == 0 else 0.0)
    result: Any = stats.ttest_1samp(differences, 0.0)
    interval = result.confidence_interval(0.95)
    return MeanDifference(
        Estimate(mean, float(interval.low), float(interval.high)), float(result.pvalue)
    )


def mean_score(scores: Sequence[float]) -> Estimate:
    """Computes the mean, with Student's interval."""
    if not len(scores):
        return UNDEFINED
    mean = float(np.mean(scores))
    if len(scores) < 2 or np.ptp(scores) == 0:
        return Estimate(mean, mean, mean) if len(scores) > 1 else Estimate(mean, *UNDEFINED[1:])
    low, high = stats.t.interval(0.95, len(scores) - 1, mean, stats.sem(scores))
    return Estimate(mean, float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values so that with no difference any is below 0.05 in one case of twenty.

    Holm 1979, Scandinavian Journal of Statistics 6:65.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    least = 0.0
    # The smallest is multiplied by the number of tests, the next by one less, and so on; none may
    # come out below one that was smaller.
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted.tolist()

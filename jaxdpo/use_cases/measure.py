"""How much fewer failures, and how sure that is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000


class Decrease(NamedTuple):
    """A relative decrease, with its 95% interval."""

    value: float
    low: float
    high: float


def relative_decrease(before: Sequence[int], after: Sequence[int], seed: int = 0) -> Decrease:
    """1 − (failures after) / (failures before), of two models on the same prompts.

    The interval is the percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13).

    >>> relative_decrease([1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]).value
    0.75
    """
    pairs = np.array([before, after])
    # A prompt is one of four kinds, so a resample is a multinomial draw of the kinds' counts.
    counts = np.array([np.sum((kind == pairs.T).all(axis=1)) for kind in _KINDS])
    drawn = np.random.default_rng(seed).multinomial(
        len(before), counts / len(before), size=_RESAMPLES
    )
    failed = drawn @ np.array(_KINDS)
    decreases = 1 - failed[:, 1] / np.maximum(failed[:, 0], 1)
    low, high = np.quantile(decreases, (0.025, 0.975))
    return Decrease(1 - sum(after) / sum(before), float(low), float(high))


# Failed before, failed after.
_KINDS = ((0, 0), (0, 1), (1, 0), (1, 1))

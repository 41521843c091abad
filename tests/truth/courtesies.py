"""Policies over how many of ten places hold a courtesy, and both scores of them.

The setting of `test_overoptimisation`, for its tests and for its picture.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from tests.truth.tabular import kl_divergence

# Places, the number of courtesies that people like best, the supervised model's rate of them, and
# the proxy's Bradley–Terry score of each.
PLACES, BEST, COURTEOUS, SCORE = 10, 3, 0.2, 0.5
COUNTS = np.arange(PLACES + 1)


class Courteous(NamedTuple):
    """A policy: √KL from the supervised model in √nats, and both scores."""

    distance: float
    true: float
    proxy: float


def courteous(rate: float) -> Courteous:
    """Measures the policy that is courteous in each place at this rate, by summing over counts."""
    log_policy, log_reference = (binom.logpmf(COUNTS, PLACES, each) for each in (rate, COURTEOUS))
    policy = np.exp(log_policy)
    distance = np.sqrt(max(kl_divergence(log_policy, log_reference), 0.0))
    true = float(-policy @ (COUNTS - BEST) ** 2)
    return Courteous(float(distance), true, float(SCORE * policy @ COUNTS))

"""Supervised training on the better of two answers, best of n, and DPO, where no answer is right.

Answers have eight places, each of which is wrong with probability 0.9, independently: of 2.3 × 10⁸
answers one has none wrong. Tajwar et al. 2024, "Preference Fine-Tuning of LLMs Should Leverage
Suboptimal, On-Policy Data" (arXiv 2404.14367): what maximises the likelihood of chosen answers is
as good as those; a negative gradient goes beyond them. Also Setlur et al. 2024 (arXiv 2406.14532).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import binom

from jaxdpo.losses import LossConfig
from tests.truth.tabular import Comparisons, loss_of_logps, minimise

PLACES, WRONG = 8, 0.9
# How many places are wrong, 0 to 8, and how often.
COUNTS = np.arange(PLACES + 1)
SHARES = binom.pmf(COUNTS, PLACES, WRONG)


def best_of(samples: int) -> float:
    """The share of wrong places in the best of n answers, exactly, by order statistics."""
    # P(the fewest ≥ k) is P(one ≥ k)ⁿ, and the mean of a count is the sum of those over k ≥ 1.
    at_least = binom.sf(COUNTS[1:] - 1, PLACES, WRONG)
    return float((at_least**samples).sum() / PLACES)


def pairs_of_two() -> Comparisons:
    """All pairs of counts, the lower one chosen, as often as two samples are such; no ties."""
    chosen, rejected = np.array(list(itertools.combinations(COUNTS, 2))).T
    weights = SHARES[chosen] * SHARES[rejected]
    return Comparisons(chosen, rejected, weights / weights.sum())


def count_logps(theta: jax.Array, counts: np.ndarray) -> jax.Array:
    """log π of an answer with so many places wrong, each with log-odds theta[0]."""
    wrong, right = jax.nn.log_sigmoid(theta[0]), jax.nn.log_sigmoid(-theta[0])
    return jnp.asarray(counts) * wrong + jnp.asarray(PLACES - counts) * right


def trained(config: LossConfig) -> float:
    """The probability that a place is wrong, after training on pairs of two samples."""
    pairs, start = pairs_of_two(), np.array([logit(WRONG)])
    counts = np.stack([pairs.chosen, pairs.rejected], axis=1)

    def objective(theta: jax.Array) -> jax.Array:
        reference = count_logps(jnp.asarray(start), counts)
        return loss_of_logps(config, count_logps(theta, counts), reference, pairs.weights)

    return float(1 / (1 + np.exp(-minimise(objective, start)[0])))


def test_supervised_training_is_as_good_as_its_data() -> None:
    """SFT on chosen answers ends at the rate of the chosen answers themselves, exactly.

    Maximum likelihood of a binomial is the mean. With 0.9 wrong, that is 0.797 for the better of
    two unlike ones; the best of 64 samples still has 0.597. A supervised term that saw the rejected
    answers, or not all of the chosen ones, would end elsewhere.
    """
    pairs = pairs_of_two()
    of_chosen = float(pairs.weights @ pairs.chosen) / PLACES
    assert trained(LossConfig(type="sft")) == pytest.approx(of_chosen, abs=1e-8)
    assert of_chosen == pytest.approx(0.797, abs=5e-4)
    assert best_of(64) == pytest.approx(0.597, abs=5e-4)


def test_dpo_goes_beyond_its_data() -> None:
    """DPO on the same pairs has nearly no place wrong: the pairs say that fewer are better, always.

    The better of two is always chosen, so that the loss has no minimum (section 4.2 of Azar et al.
    2023): descent goes on towards 0. Of 8 · 0.9 wrong places in an answer, within 3,000 steps fewer
    than 1 in 20 answers keeps one. Without the rejected answers it is supervised training.
    """
    pairs = pairs_of_two()
    counts = np.stack([pairs.chosen, pairs.rejected], axis=1)
    with jax.enable_x64(True):
        start = jnp.array([logit(WRONG)])
        reference = count_logps(start, counts)

        def objective(theta: jax.Array) -> jax.Array:
            logps = count_logps(theta, counts)
            return loss_of_logps(LossConfig(beta=1.0), logps, reference, pairs.weights)

        slope = jax.jit(jax.grad(objective))
        theta = jax.lax.fori_loop(0, 3000, lambda _, value: value - slope(value), start)
        wrong = float(jax.nn.sigmoid(theta[0]))
    assert wrong * PLACES < 0.05
    assert wrong < best_of(64) / 100

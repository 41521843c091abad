"""Over-optimisation: with a proxy for a criterion, the true score rises with KL and then falls.

Rafailov et al. 2024, "Scaling Laws for Reward Model Overoptimization in Direct Alignment
Algorithms" (arXiv 2406.02900), after Gao et al. 2022 (arXiv 2210.10760).

An answer has ten places, each of which holds a courtesy or does not. People find three courtesies
best, (k − 3)² being the fault; the proxy finds that the more the better, and says so by
Bradley–Terry with score c a courtesy. The supervised model is courteous in a fifth of places, where
both mostly agree. A policy has one number, the log-odds of a courtesy.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit, rel_entr
from scipy.stats import binom

from jaxdpo.losses import LossConfig
from tests.truth.courtesies import BEST, COURTEOUS, PLACES, SCORE, courteous
from tests.truth.tabular import loss_of_logps, minimise

BETAS = (5.0, 1.0, 0.5, 0.3, 0.1)


def trained_rate(beta: float) -> float:
    """The rate of courtesies after DPO on the proxy's comparisons of the supervised answers."""
    shares = binom.pmf(np.arange(PLACES + 1), PLACES, COURTEOUS)
    counts = np.array(list(itertools.permutations(range(PLACES + 1), 2)))
    weights = shares[counts].prod(1) * expit(SCORE * (counts[:, 0] - counts[:, 1]))
    start = np.array([logit(COURTEOUS)])

    def logps(theta: jax.Array) -> jax.Array:
        yes, no = jax.nn.log_sigmoid(theta[0]), jax.nn.log_sigmoid(-theta[0])
        return jnp.asarray(counts) * yes + jnp.asarray(PLACES - counts) * no

    def objective(theta: jax.Array) -> jax.Array:
        config = LossConfig(beta=beta)
        return loss_of_logps(config, logps(theta), logps(jnp.asarray(start)), weights)

    return float(expit(minimise(objective, start)[0]))


def test_the_proxy_agrees_with_four_labels_of_five() -> None:
    """On the supervised model's answers the proxy's order is the people's in 8 of 10 pairs."""
    shares = binom.pmf(np.arange(PLACES + 1), PLACES, COURTEOUS)
    more, fewer = np.array([(a, b) for a in range(11) for b in range(a)]).T
    weights = shares[more] * shares[fewer]
    nearer = (more - BEST) ** 2 < (fewer - BEST) ** 2
    assert weights @ nearer / weights.sum() == pytest.approx(0.8, abs=0.03)


def test_the_true_score_has_a_hump() -> None:
    """At each β DPO lands on the curve of the closed form, whose top is known by hand.

    logit q = logit q_ref + c/β. The true score is largest at q = (2 · 3 − 1)/(2 · (10 − 1)): less β
    than that buys KL for a worse answer, and the smallest β here ends below the supervised model.
    With β on the wrong side of the log-ratio the rates, and so the hump, would lie elsewhere.
    """
    rates = np.array([trained_rate(beta) for beta in BETAS])
    assert rates == pytest.approx(expit(logit(COURTEOUS) + SCORE / np.array(BETAS)), abs=1e-7)
    found = [courteous(rate) for rate in rates]
    scores = np.array([each.true for each in found])
    # By variance and squared bias of a binomial count, and by the KL of ten places.
    by_hand = -(PLACES * rates * (1 - rates) + (PLACES * rates - BEST) ** 2)
    assert scores == pytest.approx(by_hand)
    one = rel_entr(rates, COURTEOUS) + rel_entr(1 - rates, 1 - COURTEOUS)
    distances = np.array([each.distance for each in found])
    assert distances**2 == pytest.approx(PLACES * one)
    assert (np.diff(distances) > 0).all()
    top = (2 * BEST - 1) / (2 * (PLACES - 1))
    highest = int(scores.argmax())
    assert 0 < highest < len(BETAS) - 1
    assert rates[highest - 1] < top < rates[highest + 1]
    assert scores.max() <= courteous(top).true
    assert scores[-1] < courteous(COURTEOUS).true < scores[0]

"""Minima of the losses against closed forms and other people's estimators, in float64.

Every test names the paper and its equation. A wrong sign, a missing β, a reference that is left
out, a weight that is not applied or a divergence that is not f' moves the minimum, and fails here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import statsmodels.api
from scipy.special import expit, logit

from jaxdpo.losses import LossConfig
from tests.truth.tabular import (
    Comparisons,
    bradley_terry_comparisons,
    expected_reward,
    kl_divergence,
    log_softmax,
    optimal_table,
    table_loss,
)

REWARDS = np.array([2.0, 1.4, 0.9, 0.3, 0.0, -0.4, -1.1, -1.6])
# Uneven, so that a loss which forgets the reference ends elsewhere.
LOG_REFERENCE = log_softmax(np.array([-1.2, 0.3, 0.1, 1.0, -0.5, 0.8, 1.1, 0.2]))
# a over b, b over c and a over c, always.
ORDERED = Comparisons(np.array([0, 1, 0]), np.array([1, 2, 2]), np.full(3, 1 / 3))
UNIFORM = np.log(np.full(3, 1 / 3))


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_keeps_to_its_closed_form(tau: float) -> None:
    """Three arms with a deterministic order (Azar et al. 2023, arXiv 2310.12036, section 5).

    IPO fits the differences of log-ratios to 1/2τ by least squares. With s = (s_a, s_b, s_c) and
    targets s_a − s_b = s_b − s_c = s_a − s_c = 1/2τ the normal equations give s = (1, 0, −1)/3τ:
    the policy is softmax((2, 1, 0)/3τ), and stays near the reference however certain the data are.
    A target of 1/τ or of τ, or no square, gives another policy.
    """
    found = optimal_table(LossConfig(type="ipo", beta=tau), UNIFORM, ORDERED)
    assert np.exp(found) == pytest.approx(np.exp(log_softmax(np.array([2, 1, 0]) / (3 * tau))))


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_dpo_becomes_deterministic(tau: float) -> None:
    """On the same arms DPO puts everything on a, whatever τ is (Azar et al. 2023, section 4.2).

    Its loss has no minimum there, so this is descent: 18,000 steps of Adam. A loss with a finite
    target, such as IPO's, or one that β pulled back, would stop short of 1.
    """
    config = LossConfig(type="sigmoid", beta=tau)
    with jax.enable_x64(True):
        optimizer = optax.adam(0.01)

        def objective(logits: jax.Array) -> jax.Array:
            return table_loss(config, jax.nn.log_softmax(logits), UNIFORM, ORDERED)

        def step(_: jax.Array, carry: tuple) -> tuple:
            logits, state = carry
            updates, state = optimizer.update(jax.grad(objective)(logits), state)
            return optax.apply_updates(logits, updates), state

        begun = jnp.zeros(3)
        logits, _ = jax.lax.fori_loop(0, 18_000, step, (begun, optimizer.init(begun)))
        probability = float(jax.nn.softmax(logits)[0])
    assert probability > 0.9999
    # IPO on the same comparisons is nowhere near, even at the smallest of these τ.
    assert np.exp(log_softmax(np.array([2, 1, 0]) / (3 * tau)))[0] < 0.97


def drawn_comparisons(items: int, count: int) -> Comparisons:
    """Noisy comparisons of random items, each drawn by the Bradley–Terry model."""
    rng = np.random.default_rng(7)
    scores = rng.normal(0, 1.2, items)
    first = rng.integers(0, items, count)
    second = (first + rng.integers(1, items, count)) % items
    wins = rng.random(count) < expit(scores[first] - scores[second])
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    return Comparisons(chosen, rejected, np.full(count, 1 / count))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_implicit_reward_is_the_bradley_terry_estimate(beta: float) -> None:
    """The reward β log π/ref is the maximum-likelihood score of each item (Rafailov et al. 2023,
    arXiv 2305.18290, section 5.1, theorem 1), as statsmodels' logistic regression estimates it.

    12 items, 4,000 noisy comparisons, an uneven reference. With twice the β in the loss, or with
    chosen and rejected exchanged anywhere, the scores are others.
    """
    items = 12
    compared = drawn_comparisons(items, 4000)
    log_reference = log_softmax(np.random.default_rng(1).normal(0, 1, items))
    found = optimal_table(LossConfig(beta=beta), log_reference, compared)
    rewards = beta * (found - log_reference)

    # One row a comparison: +1 for one item, −1 for the other; item 0 is the origin.
    design = np.zeros((4000, items))
    design[np.arange(4000), compared.chosen] = 1
    design[np.arange(4000), compared.rejected] = -1
    # statsmodels wants both outcomes among its rows, so every second comparison is turned round.
    outcome = np.arange(4000) % 2
    design[outcome == 0] *= -1
    fitted = statsmodels.api.Logit(outcome, design[:, 1:]).fit(disp=False, tol=1e-12)
    expected = np.append(0, fitted.params)
    assert rewards - rewards[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_reaches_the_optimum_of_rlhf(beta: float) -> None:
    """π* ∝ ref · exp(r/β) (Rafailov et al. 2023, equation 4), from Bradley–Terry comparisons.

    It also attains the exact frontier: no policy has more than β log Σ ref e^(r/β) of
    E[r] − β KL, the Gibbs variational principle, and policies on the way to the optimum have less.
    """
    compared = bradley_terry_comparisons(REWARDS)
    found = optimal_table(LossConfig(beta=beta), LOG_REFERENCE, compared)
    optimum = log_softmax(LOG_REFERENCE + REWARDS / beta)
    assert np.abs(np.exp(found) - np.exp(optimum)).sum() / 2 < 2e-8

    def value(log_policy: np.ndarray) -> float:
        kl = kl_divergence(log_policy, LOG_REFERENCE)
        return expected_reward(log_policy, REWARDS) - beta * kl

    most = beta * scipy.special.logsumexp(LOG_REFERENCE + REWARDS / beta)
    assert value(found) == pytest.approx(most, abs=1e-8)
    for share in (0.0, 0.5, 0.9, 1.5):
        assert value(log_softmax(LOG_REFERENCE + share * REWARDS / beta)) < most - 1e-5


def test_the_frontier_has_the_known_point() -> None:
    """At β = ½ the frontier of these rewards and a uniform reference is known by hand.

    π* = softmax(2r), so that E[r] = Σ r e^(2r) / Σ e^(2r) and KL = E[2r] − log Σ e^(2r) / 8.
    """
    uniform = np.full(8, -np.log(8))
    compared = bradley_terry_comparisons(REWARDS)
    found = optimal_table(LossConfig(beta=0.5), uniform, compared)
    powers = np.exp(2 * REWARDS)
    mean = REWARDS @ powers / powers.sum()
    assert expected_reward(found, REWARDS) == pytest.approx(mean, abs=1e-8)
    kl = 2 * mean - np.log(powers.sum() / 8)
    assert kl_divergence(found, uniform) == pytest.approx(kl, abs=1e-8)


# u ↦ (f')⁻¹(u) of the divergences of f-DPO's table 1, up to the constant that normalisation fixes.
INVERSES = {
    # f = u log u: f' = log u + 1.
    "reverse_kl": np.exp,
    # f = −log u: f' = −1/u, defined for negative values alone.
    "forward_kl": lambda value: -1 / value,
    # f = u log u − (u + 1) log((u + 1)/2): f' = log 2u/(1 + u), below log 2.
    "js_divergence": lambda value: np.exp(value) / (2 - np.exp(value)),
    # f' = (1 − u^−α)/α with α = ½: below 2.
    "alpha_divergence": lambda value: (1 - value / 2) ** -2.0,
}
# The value that f' stays below.
CEILINGS = {
    "reverse_kl": np.inf,
    "forward_kl": 0.0,
    "js_divergence": np.log(2),
    "alpha_divergence": 2.0,
}


def f_optimum(divergence: str, beta: float) -> np.ndarray:
    """ref · (f')⁻¹((r − λ)/β), with λ such that it adds up to 1, by root finding."""
    inverse, reference = INVERSES[divergence], np.exp(LOG_REFERENCE)

    def excess(level: float) -> float:
        return float(reference @ inverse((REWARDS - level) / beta)) - 1

    # Where the largest argument is just below the ceiling, the sum is more than 1.
    ceiling = CEILINGS[divergence]
    low = -50.0 if np.isinf(ceiling) else REWARDS.max() - beta * ceiling + 1e-9
    level = scipy.optimize.brentq(excess, low, 500.0, xtol=1e-14, rtol=1e-15)
    return reference * inverse((REWARDS - level) / beta)


@pytest.mark.parametrize("beta", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("divergence", INVERSES)
def test_f_dpo_reaches_its_own_optimum(divergence: str, beta: float) -> None:
    """π* = ref · (f')⁻¹((r − λ)/β) (Wang et al. 2023, arXiv 2309.16240, theorem 1 and table 1).

    The four divergences have four optima, so that one computed in place of another fails.
    """
    compared = bradley_terry_comparisons(REWARDS)
    found = optimal_table(LossConfig(beta=beta, f_divergence=divergence), LOG_REFERENCE, compared)
    assert np.abs(np.exp(found) - f_optimum(divergence, beta)).sum() / 2 < 2e-8
    for other in set(INVERSES) - {divergence}:
        assert np.abs(np.exp(found) - f_optimum(other, beta)).sum() / 2 > 1e-3


FLIPPED = 0.2
# How often an answer that is preferred by 8 in 10 is recorded as chosen, if a fifth of the labels
# are flipped: .8 · .8 + .2 · .2.
OBSERVED = 0.68


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # Believes the labels as they are.
        ({"type": "sigmoid"}, logit(OBSERVED)),
        # Flips a fifth of them once more (Mitchell 2023, "A note on DPO with noisy preferences").
        ({"type": "sigmoid", "label_smoothing": FLIPPED}, logit(0.68 * 0.8 + 0.32 * 0.2)),
        # Takes the flips out again (Chowdhury et al. 2024, arXiv 2403.00409, section 3.2).
        ({"type": "robust", "label_smoothing": FLIPPED}, logit(0.8)),
    ],
    ids=["sigmoid", "cdpo", "robust"],
)
def test_margins_under_flipped_labels(loss: dict, expected: float) -> None:
    """Margins of reward are 0.7538, 0.4389 and 1.3863: the robust loss alone finds logit(0.8).

    If robust DPO smoothed like cDPO, or divided by 1 − 2ε with the wrong sign, it would not.
    """
    compared = Comparisons(np.array([0, 1]), np.array([1, 0]), np.array([OBSERVED, 1 - OBSERVED]))
    reference = log_softmax(np.array([0.4, -0.2]))
    found = optimal_table(LossConfig(beta=0.5, **loss), reference, compared)
    margin = 0.5 * ((found - reference)[0] - (found - reference)[1])
    assert margin == pytest.approx(expected, abs=1e-8)


def test_mass_on_unseen_answers() -> None:
    """DPO does not say what happens to answers in no pair (Xu et al. 2024, arXiv 2404.10719,
    section 4.1): its loss is the same wherever their mass is.

    Descent on logits moves chosen and rejected by the same amount in opposite directions and leaves
    the third logit alone, so that from a uniform start π(unseen) = 1/(1 + 2 cosh(Δ/2)), with
    Δ = log π(chosen)/π(rejected). A loss with a supervised term would see the third answer.
    """
    compared = Comparisons(np.array([0]), np.array([1]), np.ones(1))
    config = LossConfig(beta=0.5)
    with jax.enable_x64(True):
        # The same ratio of chosen to rejected, with a tenth and with nine tenths elsewhere.
        losses = [
            float(table_loss(config, jnp.log(jnp.array(policy)), UNIFORM, compared))
            for policy in ([0.6, 0.3, 0.1], [0.2 / 3, 0.1 / 3, 0.9])
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        both = LossConfig(type=("sigmoid", "sft"), beta=0.5)
        mixed = [
            float(table_loss(both, jnp.log(jnp.array(policy)), UNIFORM, compared))
            for policy in ([0.6, 0.3, 0.1], [0.2 / 3, 0.1 / 3, 0.9])
        ]
        assert mixed[0] < mixed[1] - 1

        def descend(logits: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            slope = jax.grad(
                lambda x: table_loss(config, jax.nn.log_softmax(x), UNIFORM, compared)
            )(logits)
            return logits - 0.5 * slope, jax.nn.log_softmax(logits)

        _, path = jax.lax.scan(descend, jnp.zeros(3), None, length=20_000)
        chosen, rejected, unseen = np.asarray(path)[::100].T
    gap = chosen - rejected
    assert np.exp(unseen) == pytest.approx(1 / (1 + 2 * np.cosh(gap / 2)), abs=1e-9)
    # It went somewhere: from a third to nearly nothing.
    assert np.exp(unseen[[0, -1]]) == pytest.approx([1 / 3, 0], abs=1e-3)

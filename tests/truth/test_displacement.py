"""Likelihood displacement: DPO lowers the probability of the preferred answer too.

Razin et al. 2024, "Unintentional Unalignment" (arXiv 2410.08847).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.losses import LossConfig
from tests.truth.tabular import Comparisons, table_loss

PAIR = Comparisons(np.array([0]), np.array([1]), np.ones(1))
BETA = 0.5


def descend(
    heads: np.ndarray, hidden: np.ndarray, rate: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Trains unembeddings and hidden state on one pair, the reference being the start.

    Args:
      heads: f64 `[V, D]`, a row for each token; token 0 is preferred to token 1.
      hidden: f64 `[D]`, the hidden state of the prompt, which trains as if it were free.
      rate: Learning rate.
      steps: Number of steps of gradient descent.

    Returns:
      π before and after, f64 `[V]`.
    """
    with jax.enable_x64(True):
        start = (jnp.asarray(heads), jnp.asarray(hidden))
        reference = np.asarray(jax.nn.log_softmax(start[0] @ start[1]))

        def objective(params: tuple) -> jax.Array:
            log_policy = jax.nn.log_softmax(params[0] @ params[1])
            return table_loss(LossConfig(beta=BETA), log_policy, reference, PAIR)

        def step(_: int, params: tuple) -> tuple:
            slopes = jax.grad(objective)(params)
            return jax.tree.map(lambda value, slope: value - rate * slope, params, slopes)

        heads_after, hidden_after = jax.lax.fori_loop(0, steps, step, start)
        return np.exp(reference), np.asarray(jax.nn.softmax(heads_after @ hidden_after))


def first_change(heads: np.ndarray, hidden: np.ndarray) -> float:
    """d log π(preferred)/dt at the start, by hand (Razin et al., theorem 1 for one token).

    The gradient of the loss through the margin is −β/2. The hidden state moves by w₊ − w₋, the
    unembeddings of the pair by ±h, so that
    (β/2) [⟨w₊ − E w, w₊ − w₋⟩ + ‖h‖² (1 − π₊ + π₋)].
    """
    logits = heads @ hidden
    policy = np.exp(logits - np.logaddexp.reduce(logits))
    away = heads[0] - heads[1]
    by_state = (heads[0] - policy @ heads) @ away
    by_heads = hidden @ hidden * (1 - policy[0] + policy[1])
    return BETA / 2 * (by_state + by_heads)


def test_like_tokens_displace_each_other() -> None:
    """If preferred and dispreferred token are alike, both fall and a third one rises.

    Token 1 is token 0 and more of the same direction; token 2 lies on the other side. Then w₊ − w₋
    points away from both, and the third token takes their probability (section 4.2). If the
    gradient of the rejected answer had the wrong sign, the preferred token would rise.
    """
    heads = np.array([[2.0, 0.0], [3.0, 0.0], [-2.0, 0.5], [0.0, -1.0]])
    hidden = np.array([0.3, 0.1])
    before, after = descend(heads, hidden, 0.05, 400)
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]
    assert after[2] > 2 * before[2]
    # The preferred token still wins against the other: the loss has what it asked for.
    assert after[0] / after[1] > before[0] / before[1]
    # Unlike tokens: the same training raises the preferred one.
    heads[1] = [-2.0, -0.5]
    before, after = descend(heads, hidden, 0.05, 400)
    assert after[0] > before[0]


@pytest.mark.parametrize("seed", range(6))
def test_the_first_step_is_known_by_hand(seed: int) -> None:
    """The change of log π(preferred) in a small step is its derivative in closed form.

    Half of the random models fall, half rise: a wrong factor or sign fails on either.
    """
    rng = np.random.default_rng(seed)
    heads, hidden = rng.normal(0, 1, (6, 4)), rng.normal(0, 0.3, 4)
    # Every second one has its dispreferred token near to, and beyond, the preferred one.
    if seed % 2:
        heads[1] = 1.5 * heads[0] + rng.normal(0, 0.1, 4)
    rate = 1e-6
    before, after = descend(heads, hidden, rate, 1)
    change = (np.log(after[0]) - np.log(before[0])) / rate
    expected = first_change(heads, hidden)
    assert change == pytest.approx(expected, rel=1e-4)
    assert (expected < 0) == bool(seed % 2)

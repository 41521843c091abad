"""Policies over a handful of answers, in float64, minimised to the last digits.

The losses are the project's own: `loss_sums` is what a training step calls. What is left out is the
language model, so that nothing but the loss decides where the minimum lies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import loss_sums
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores

# The largest gradient at what counts as a minimum.
GRADIENT = 1e-11


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of answers, which are numbered from 0.

    Attributes:
      chosen: i64 `[N]`.
      rejected: i64 `[N]`.
      weights: f64 `[N]`, how often each comparison was made; they add up to 1.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    weights: np.ndarray


def bradley_terry_comparisons(rewards: np.ndarray) -> Comparisons:
    """All ordered pairs of answers, as often as people with such rewards would choose so."""
    chosen, rejected = np.nonzero(~np.eye(len(rewards), dtype=bool))
    wins = 1 / (1 + np.exp(rewards[rejected] - rewards[chosen]))
    return Comparisons(chosen, rejected, wins / wins.sum())


def loss_of_logps(
    config: LossConfig,
    logps: jax.Array,
    reference: jax.Array,
    weights: np.ndarray,
    tokens: np.ndarray | None = None,
    margins: np.ndarray | None = None,
) -> jax.Array:
    """The objective of pairs, as a training step has it.

    Args:
      config: The loss.
      logps: f64 `[N, 2]`, of the chosen and the rejected answer.
      reference: f64 `[N, 2]`.
      weights: f64 `[N]`.
      tokens: f64 `[N, 2]`, lengths; None for answers of one token.
      margins: f64 `[N]`, target margins of reward, or None.
    """
    lengths = jnp.ones_like(logps) if tokens is None else jnp.asarray(tokens)
    scores = CompletionScores(logps, logps, lengths)
    columns = PairColumns(reference, jnp.asarray(weights), margins)
    is_pair = jnp.ones(len(weights), bool)
    return loss_sums(config, scores, columns, is_pair, jnp.mean(lengths[:, 0]))["loss"]


def table_loss(
    config: LossConfig, log_policy: jax.Array, log_reference: np.ndarray, compared: Comparisons
) -> jax.Array:
    """The objective of a table of log-probs, f64 `[K]`."""
    pairs = np.stack([compared.chosen, compared.rejected], axis=1)
    reference = jnp.asarray(log_reference)[pairs]
    return loss_of_logps(config, log_policy[pairs], reference, compared.weights)


def minimise(objective: Callable[[jax.Array], jax.Array], start: np.ndarray) -> np.ndarray:
    """The minimum of a smooth function, by Newton steps within a trust region.

    Args:
      objective: f64 `[P]` to a scalar.
      start: f64 `[P]`.
    """
    with jax.enable_x64(True):
        value_and_gradient = jax.jit(jax.value_and_grad(objective))
        hessian = jax.jit(jax.hessian(objective))
        found = scipy.optimize.minimize(
            lambda x: tuple(np.asarray(each) for each in value_and_gradient(jnp.asarray(x))),
            start,
            jac=True,
            hess=lambda x: np.asarray(hessian(jnp.asarray(x))),
            method="trust-exact",
            options={"gtol": GRADIENT, "maxiter": 500},
        )
        # The trust region ends where the loss no longer falls in its last digit; the gradient still
        # says where the minimum is, to twice as many digits.
        point = found.x
        for _ in range(3):
            slope = np.asarray(value_and_gradient(jnp.asarray(point))[1])
            if np.abs(slope).max() > GRADIENT:
                point = point - np.linalg.solve(np.asarray(hessian(jnp.asarray(point))), slope)
        slope = np.asarray(value_and_gradient(jnp.asarray(point))[1])
        assert np.abs(slope).max() < 100 * GRADIENT, found.message
    return point


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log π of a table of logits."""
    return logits - scipy.special.logsumexp(logits)


def optimal_table(
    config: LossConfig, log_reference: np.ndarray, compared: Comparisons
) -> np.ndarray:
    """log π, f64 `[K]`, of the policy that minimises the objective, begun at the reference."""

    def objective(free: jax.Array) -> jax.Array:
        # The last logit stays: adding a number to all of them changes no probability.
        log_policy = jax.nn.log_softmax(jnp.append(free, log_reference[-1]))
        return table_loss(config, log_policy, log_reference, compared)

    return log_softmax(np.append(minimise(objective, log_reference[:-1]), log_reference[-1]))


def expected_reward(log_policy: np.ndarray, rewards: np.ndarray) -> float:
    """E_π[r]."""
    return float(np.exp(log_policy) @ rewards)


def kl_divergence(log_policy: np.ndarray, log_reference: np.ndarray) -> float:
    """KL(π ‖ ref), nats."""
    return float(np.exp(log_policy) @ (log_policy - log_reference))

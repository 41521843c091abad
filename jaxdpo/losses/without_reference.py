"""Losses of the policy's log-probs alone: no reference model is scored or held."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from jaxdpo.losses.against_reference import capped_expm1, smoothed


def sft_loss(chosen_logps: jax.Array, mean_tokens: jax.Array) -> jax.Array:
    """Supervised fine-tuning: −log π of the chosen completion, in parts of the mean length.

    Divided by the mean length of the step's chosen completions, and not by each one's own, so that
    the mean over the step's pairs is the mean over its tokens, as a supervised trainer has it.

    >>> import numpy as np
    >>> float(sft_loss(np.float32([-6, -2]), np.float32(4)).mean())
    1.0

    Args:
      chosen_logps: f32 `[...]`, summed over tokens, in nats.
      mean_tokens: f32 scalar, tokens of a chosen completion, averaged over the step's pairs.

    Returns:
      f32 `[...]`.
    """
    return -chosen_logps / mean_tokens


def cpo_loss(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    sft_losses: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """CPO: −(1−ε) log σ(x) − ε log σ(−x) + SFT, x = β(log π_c − log π_r).

    Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance
    in Machine Translation", equation 6. (For another weight of the second term mix `sigmoid`,
    without a reference, and `sft`.)

    Args:
      chosen_logps: f32 `[...]`, summed over tokens, in nats.
      rejected_logps: Likewise.
      sft_losses: f32 `[...]`, from `sft_loss`.
      beta: Temperature.
      label_smoothing: ε.
    """
    return smoothed(beta * (chosen_logps - rejected_logps), label_smoothing) + sft_losses


def simpo_loss(
    chosen_mean_logps: jax.Array,
    rejected_mean_logps: jax.Array,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
    margins: jax.Array | float = 0.0,
) -> jax.Array:
    """SimPO: −log σ(β(c̄ − r̄) − γ) of log-probs averaged over tokens.

    Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    equation 6. Its β is 2 to 10.

    Args:
      chosen_mean_logps: f32 `[...]`, nats a token.
      rejected_mean_logps: Likewise.
      beta: Temperature.
      gamma: Target margin, in nats of reward.
      label_smoothing: ε, as in cDPO.
      margins: A pair's own target margin, added to γ.
    """
    difference = chosen_mean_logps - rejected_mean_logps
    return smoothed(beta * difference - gamma - margins, label_smoothing)


def alphapo_loss(
    chosen_mean_logps: jax.Array,
    rejected_mean_logps: jax.Array,
    *,
    beta: float,
    gamma: float,
    alpha: float,
) -> jax.Array:
    """AlphaPO: −log σ(β(r_c − r_r) − γ), r = (1 − p^−α) / α, p the mean token's probability.

    Gupta et al. 2025, "AlphaPO: Reward Shape Matters for LLM Alignment", equation 7. At α = 0 it is
    SimPO.

    Args:
      chosen_mean_logps: f32 `[...]`, nats a token.
      rejected_mean_logps: Likewise.
      beta: Temperature.
      gamma: Target margin, in nats of reward.
      alpha: Shape of the reward.
    """

    def reward(mean_logps: jax.Array) -> jax.Array:
        return mean_logps if alpha == 0 else -capped_expm1(-alpha * mean_logps) / alpha

    difference = reward(chosen_mean_logps) - reward(rejected_mean_logps)
    return -log_sigmoid(beta * difference - gamma)


def orpo_loss(
    chosen_mean_logps: jax.Array,
    rejected_mean_logps: jax.Array,
    sft_losses: jax.Array,
    *,
    beta: float,
) -> jax.Array:
    """ORPO: SFT − β log σ(log odds(c̄) − log odds(r̄)), odds(l) = e^l / (1 − e^l).

    Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations
    6 and 7, β written λ. The supervised term is of the completion, as in the paper; TRL's counts
    the prompt's tokens too.

    Args:
      chosen_mean_logps: f32 `[...]`, nats a token.
      rejected_mean_logps: Likewise.
      sft_losses: f32 `[...]`, from `sft_loss`.
      beta: Weight of the odds ratio.
    """

    def log_odds(mean_logps: jax.Array) -> jax.Array:
        # A probability of 1 has infinite odds; this near to it fp32 still tells apart.
        below = jnp.minimum(mean_logps, -1e-6)
        return below - _log1mexp(below)

    ratio = log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps)
    return sft_losses - beta * log_sigmoid(ratio)


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 − e^x) for x < 0, exact on both sides (Mächler 2012)."""
    near = x > -jnp.log(2.0)
    near_x, far_x = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(near_x)), jnp.log1p(-jnp.exp(far_x)))

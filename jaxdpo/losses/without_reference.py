"""Losses of the policy's log-probs alone: no reference model is scored or held.

As in `against_reference`, parameters have the same names everywhere:

  chosen_logps, rejected_logps             f32 `[...]`, log π summed over the tokens, in nats
  chosen_mean_logps, rejected_mean_logps   f32 `[...]`, the same averaged over the tokens
  sft_losses                               f32 `[...]`, from `sft_loss`
"""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from jaxdpo.losses.against_reference import capped_expm1, smoothed


def sft_loss(chosen_plain_logps: jax.Array, mean_chosen_tokens: jax.Array) -> jax.Array:
    """Computes −log π of the chosen completion, in parts of the mean length.

    >>> import numpy as np
    >>> float(sft_loss(np.float32([-6, -2]), np.float32(4)).mean())
    1.0

    Args:
      chosen_plain_logps: f32 `[...]`, summed over all tokens alike, whatever `ld_alpha` is, nats.
      mean_chosen_tokens: f32 scalar, tokens of a chosen completion, averaged over the step's pairs.

    Returns:
      f32 `[...]`.
    """
    # Divided by the mean length of the step's chosen completions, and not by each one's own, so
    # that the mean over the step's pairs is the mean over its tokens, as supervised trainers have
    # it.
    return -chosen_plain_logps / mean_chosen_tokens


def cpo_loss(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    sft_losses: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Computes CPO: −(1−ε) log σ(x) − ε log σ(−x) + SFT, x = β(log π_c − log π_r).

    Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance
    in Machine Translation", equation 6. (For another weight of the second term mix `sigmoid`,
    without a reference, and `sft`.)

    Args:
      chosen_logps: f32 `[...]`, summed over tokens, in nats.
      rejected_logps: f32 `[...]`, summed over tokens, in nats.
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
    """Computes SimPO: −log σ(β(c̄ − r̄) − γ) of log-probs averaged over tokens.

    Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    equation 6. Its β is 2 to 10.

    Args:
      chosen_mean_logps: f32 `[...]`, nats a token.
      rejected_mean_logps: f32 `[...]`, nats a token.
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
    """Computes AlphaPO: −log σ(β(r_c − r_r) − γ), r = (1 − p^−α) / α.

    Gupta et al. 2025, "AlphaPO: Reward Shape Matters for LLM Alignment", equation 7; p is the mean
    token's probability. At α = 0 it is SimPO.

    Args:
      chosen_mean_logps: f32 `[...]`, nats a token.
      rejected_mean_logps: f32 `[...]`, nats a token.
      beta: Temperature.
      gamma: Target margin, in nats of reward.
      alpha: Shape of the reward.
    """

    def reward(mean_logps: jax.Array) -> jax.Array:
        # p^−α overflows for the improbable completions of an untrained model: `capped_expm1`.
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
    """Computes ORPO: SFT − β log σ(log odds(c̄) − log odds(r̄)), odds(l) = e^l / (1 − e^l).

    Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations
    6 and 7, β written λ. The supervised term is of the completion, as in the paper; TRL's counts
    the prompt's tokens too.

    Args:
      chosen_mean_logps: f32 `[...]`, nats a token.
      rejected_mean_logps: f32 `[...]`, nats a token.
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
    """Computes log(1 − e^x) for x < 0, exactly on both sides of −log 2 (Mächler 2012)."""
    near = x > -jnp.log(2.0)
    # Each formula is given a harmless number where the other is used, so that the branch that is
    # not taken has a finite slope.
    near_x, far_x = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(near_x)), jnp.log1p(-jnp.exp(far_x)))

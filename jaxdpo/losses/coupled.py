"""Losses against a reference that couple the pairs of a step: KTO by a mean, AOT by ranks.

Parameters have the names of `against_reference`.
"""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from jaxdpo.losses.against_reference import smoothed


def mismatched_kl(mismatched_logratios: jax.Array, is_pair: jax.Array) -> jax.Array:
    """Computes KTO's z: max(0, the mean log-ratio of answers to other prompts).

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section 4.1,
    over the optimizer step's answers (TRL: a micro-batch's).

    Args:
      mismatched_logratios: f32 `[...]`, log π − log ref, summed over tokens, in nats.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalar, through which no gradient goes.
    """
    total = jnp.sum(jnp.where(is_pair, mismatched_logratios, 0.0))
    mean = total / jnp.maximum(jnp.sum(is_pair), 1)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def kto_loss(
    logratios: jax.Array,
    labels: jax.Array,
    kl: jax.Array,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """Computes the KTO loss: λ_D (1 − σ(β(a − z))) of good answers, λ_U (1 − σ(β(z − a))) of bad.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equation 8
    without the constant λ_y. At the reference it is λ / 2.

    >>> import numpy as np
    >>> kto_loss(np.zeros(2, np.float32), np.float32([1, 0]), np.float32(0), beta=0.1)
    Array([0.5, 0.5], dtype=float32)

    Args:
      logratios: f32 `[...]`, a = log π − log ref of the answers, in nats.
      labels: f32 `[...]`, 1 of an answer found good, 0 of a bad one.
      kl: f32 scalar, z, from `mismatched_kl`.
      beta: How fast the value of a reward saturates.
      desirable_weight: λ_D.
      undesirable_weight: λ_U.
    """
    excess = beta * (logratios - kl)
    good = desirable_weight * sigmoid(-excess)
    return jnp.where(labels > 0, good, undesirable_weight * sigmoid(excess))


def aot_loss(
    policy_margins: jax.Array,
    reference_margins: jax.Array,
    is_pair: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Computes paired AOT: `smoothed(βδ)`, δ = sort(policy margins) − sort(reference margins).

    Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport",
    equation 7. All pairs of the optimizer step are sorted together (TRL sorts each micro-batch by
    itself).

    Args:
      policy_margins: f32 `[...]`, log π of the chosen completion less the rejected one's, in nats.
      reference_margins: f32 `[...]`, the same of the reference.
      is_pair: bool `[...]`, false where there is padding.
      beta: β.
      label_smoothing: ε.

    Returns:
      f32 `[...]`, by rank in the flattened array and not by pair; the first as many as there are
      pairs count, the others are 0.
    """
    shape = is_pair.shape
    flat, present = (policy_margins.reshape(-1), reference_margins.reshape(-1)), is_pair.reshape(-1)

    def ranked(values: jax.Array) -> jax.Array:
        # Padding is sorted to the end.
        return jnp.sort(jnp.where(present, values, jnp.finfo(jnp.float32).max))

    counted = jnp.arange(present.size) < jnp.sum(present)
    difference = jnp.where(counted, ranked(flat[0]) - ranked(flat[1]), 0.0)
    return jnp.where(counted, smoothed(beta * difference, label_smoothing), 0.0).reshape(shape)


def aot_unpaired_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    is_pair: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Computes unpaired AOT: `smoothed(βδ)`, δ = sort(a_c) − sort(a_r).

    Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport",
    equation 9.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      is_pair: bool `[...]`, false where there is padding.
      beta: β.
      label_smoothing: ε.

    Returns:
      f32 `[...]`, by rank, as `aot_loss` returns them.
    """
    return aot_loss(
        chosen_logratios, rejected_logratios, is_pair, beta=beta, label_smoothing=label_smoothing
    )

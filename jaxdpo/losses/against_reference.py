"""Losses of the policy's log-ratios to a reference: a = log π − log ref of each completion.

All return one loss for each pair, f32 `[...]`. Their parameters have the same names everywhere,
because `table.LOSSES` passes them by name:

  chosen_logratios     f32 `[...]`, a_c, summed over the chosen completion's tokens, in nats
  rejected_logratios   f32 `[...]`, a_r
  chosen_tokens        f32 `[...]`, n_c, how many tokens the chosen completion has
  rejected_tokens      f32 `[...]`, n_r
  margins              f32 `[...]`, target margins of reward from the data, or 0
  beta                 β, strength of the pull to the reference, 1/nats of reward
  label_smoothing      ε, share of pairs whose preference is taken to be wrong

A loss that allows another divergence than the reverse KL is given `divergence_scores` of the
log-ratios in their place.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

# Above this exponent e^x goes on as a straight line: finite in fp32, squared too, with a gradient.
_LARGEST_EXPONENT = 30.0


def capped_expm1(x: jax.Array) -> jax.Array:
    """Computes e^x − 1, continued along its tangent above x = 30."""
    cap = _LARGEST_EXPONENT
    top = jnp.exp(jnp.float32(cap))
    # `minimum` inside the branch that is not taken: an overflow there would make the gradient of
    # `where` NaN, since it multiplies the unused branch's infinite slope by 0.
    return jnp.where(x <= cap, jnp.expm1(jnp.minimum(x, cap)), top * (1 + x - cap) - 1)


def divergence_scores(logratios: jax.Array, kind: Divergence, alpha: float) -> jax.Array:
    """Computes f'(π / ref) up to a constant that makes it 0 where the policy equals its reference.

    Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
    Divergence Constraints", table 1.

    >>> import numpy as np
    >>> divergence_scores(np.zeros(1, np.float32), "js_divergence", 0.5)
    Array([0.], dtype=float32)

    Args:
      logratios: f32 `[...]`, u = log π − log ref.
      kind: reverse_kl u; forward_kl 1 − e^−u; js_divergence log 2 + log σ(u); alpha_divergence
        (e^((α−1)u) − 1) / (α − 1).
      alpha: α of the alpha-divergence; at 1 it is the reverse KL.
    """
    if kind == "forward_kl":
        return -capped_expm1(-logratios)
    if kind == "js_divergence":
        # log σ(u) = −log 2 at 0 in the same rounding, so that the score there is 0 exactly.
        return log_sigmoid(logratios) - log_sigmoid(jnp.zeros((), logratios.dtype))
    # Near α = 1 the quotient is 0 / 0; its limit is u itself.
    if kind == "alpha_divergence" and abs(alpha - 1) > 1e-6:
        return capped_expm1((alpha - 1) * logratios) / (alpha - 1)
    return logratios


def sigmoid_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    margins: jax.Array | float = 0.0,
) -> jax.Array:
    """Computes the DPO loss: −(1−ε) log σ(x) − ε log σ(−x), x = β(a_c − a_r) − margin.

    Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
    Model", equation 7; with ε cDPO, Mitchell 2023, "A note on DPO with noisy preferences", equation
    3 (TRL 1.16 ignores ε here); with a margin ODPO, Amini et al. 2024, "Direct Preference
    Optimization with an Offset", equation 7. At the reference it is log 2.

    >>> import numpy as np
    >>> sigmoid_loss(*np.zeros((2, 1), np.float32), beta=0.1).round(4)
    Array([0.6931], dtype=float32)

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
      label_smoothing: ε.
      margins: f32 `[...]`, target margins of reward.
    """
    return smoothed(beta * (chosen_logratios - rejected_logratios) - margins, label_smoothing)


def smoothed(logits: jax.Array, label_smoothing: float) -> jax.Array:
    """Computes −(1−ε) log σ(x) − ε log σ(−x)."""
    # log_sigmoid, never the log of a sigmoid: σ underflows to 0 for x below −104 in fp32.
    right = -log_sigmoid(logits)
    if label_smoothing == 0:
        return right
    return (1 - label_smoothing) * right - label_smoothing * log_sigmoid(-logits)


def hinge_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    *,
    beta: float,
    margins: jax.Array | float = 0.0,
) -> jax.Array:
    """Computes the hinge loss of RSO and SLiC: max(0, 1 − x), x = β(a_c − a_r) − margin.

    Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", equation 10.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
      margins: f32 `[...]`, target margins of reward.
    """
    return jax.nn.relu(1 - (beta * (chosen_logratios - rejected_logratios) - margins))


def ipo_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    chosen_tokens: jax.Array,
    rejected_tokens: jax.Array,
    *,
    beta: float,
) -> jax.Array:
    """Computes the IPO loss: (a_c / n_c − a_r / n_r − 1 / 2β)².

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", equation 17, β written τ; the average over tokens is what its authors use.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      chosen_tokens: f32 `[...]`, n_c.
      rejected_tokens: f32 `[...]`, n_r.
      beta: β; 1 / 2β is the margin, in nats a token, at which the loss is 0.
    """
    difference = chosen_logratios / chosen_tokens - rejected_logratios / rejected_tokens
    return jnp.square(difference - 1 / (2 * beta))


def sigmoid_norm_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    chosen_tokens: jax.Array,
    rejected_tokens: jax.Array,
    *,
    beta: float,
    margins: jax.Array | float = 0.0,
) -> jax.Array:
    """Computes length-normalised DPO: −log σ(β(a_c / n_c − a_r / n_r) − margin).

    Lambert et al. 2024, "Tülu 3: Pushing Frontiers in Open Language Model Post-Training",
    equation 6. Its β is larger than DPO's by about the number of tokens (5 in the paper).

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      chosen_tokens: f32 `[...]`, n_c.
      rejected_tokens: f32 `[...]`, n_r.
      beta: β.
      margins: f32 `[...]`, target margins of reward.
    """
    difference = chosen_logratios / chosen_tokens - rejected_logratios / rejected_tokens
    return -log_sigmoid(beta * difference - margins)


def robust_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    *,
    beta: float,
    label_smoothing: float,
) -> jax.Array:
    """Computes robust DPO: [−(1−ε) log σ(x) + ε log σ(−x)] / (1 − 2ε).

    It is unbiased if a share ε of the preferences is flipped. Chowdhury et al. 2024, "Provably
    Robust DPO: Aligning Language Models with Noisy Feedback", equation 12.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
      label_smoothing: ε, below one half.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    epsilon = label_smoothing
    # log σ(−x) = log σ(x) − x, so that the two large terms do not cancel where x is far from 0.
    return -log_sigmoid(logits) - logits * epsilon / (1 - 2 * epsilon)


def exo_pair_loss(
    chosen_logratios: jax.Array,
    rejected_logratios: jax.Array,
    *,
    beta: float,
    label_smoothing: float,
) -> jax.Array:
    """Computes the EXO loss: the KL divergence of (σ(x), σ(−x)) from (1−ε, ε).

    Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment",
    equation 16, for two completions.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
      label_smoothing: ε, above 0: the loss takes its logarithm.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    right = log_sigmoid(logits) - jnp.log1p(-label_smoothing)
    wrong = log_sigmoid(-logits) - jnp.log(label_smoothing)
    return sigmoid(logits) * right + sigmoid(-logits) * wrong


def nca_pair_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """Computes the NCA loss: −log σ(βa_c) − ½ log σ(−βa_c) − ½ log σ(−βa_r).

    Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards",
    equation 11, for two completions.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
    """
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """Computes the BCO loss of pairs: −log σ(βa_c) − log σ(−βa_r).

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment",
    equation 9, its reward shift δ being 0.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
    """
    return -log_sigmoid(beta * chosen_logratios) - log_sigmoid(-beta * rejected_logratios)


def sppo_hard_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """Computes the SPPO loss: (a_c − 1 / 2β)² + (a_r + 1 / 2β)².

    Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", equation 4.7
    with the win rate of the chosen completion taken as 1.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
    """
    target = 1 / (2 * beta)
    return jnp.square(chosen_logratios - target) + jnp.square(rejected_logratios + target)


def apo_zero_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """Computes APO-zero: 1 − σ(βa_c) + σ(βa_r), for chosen completions better than the model's own.

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions",
    equation 7.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
    """
    return sigmoid(-beta * chosen_logratios) + sigmoid(beta * rejected_logratios)


def apo_down_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """Computes APO-down: σ(βa_c) + 1 − σ(β(a_c − a_r)).

    It is for chosen completions that are worse than the model's own. D'Oosterlinck et al. 2024,
    "Anchored Preference Optimization and Contrastive Revisions", equation 8.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
    """
    difference = chosen_logratios - rejected_logratios
    return sigmoid(beta * chosen_logratios) + sigmoid(-beta * difference)


def discopop_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float, discopop_tau: float
) -> jax.Array:
    """Computes DiscoPOP: −log σ(x)(1 − m) + e^−x m, m = σ(x / τ), x = β(a_c − a_r).

    Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language
    Models", equation 5.

    Args:
      chosen_logratios: f32 `[...]`, nats.
      rejected_logratios: f32 `[...]`, nats.
      beta: β.
      discopop_tau: τ, below 1.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    logistic = -log_sigmoid(logits) * sigmoid(-logits / discopop_tau)
    # Where x is far below 0, e^−x overflows and m underflows, and TRL 1.16 gives NaN. Their product
    # is one exponential, e^(−x + log m), which is bounded for τ < 1.
    return logistic + jnp.exp(-logits + log_sigmoid(logits / discopop_tau))

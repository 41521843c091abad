"""Losses of the policy's log-ratios to a reference: a = log π − log ref of each completion.

All take `chosen_logratios` and `rejected_logratios`, f32 `[...]`, summed over a completion's
tokens, in nats, and give f32 `[...]`, one loss a pair. Where a loss allows another divergence than
the reverse KL, it takes what `divergence_scores` makes of the log-ratios instead.
"""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from jaxdpo.losses.config import Divergence

# Above this exponent e^x goes on as a straight line: finite in fp32, squared too, with a gradient.
_LARGEST_EXPONENT = 30.0


def capped_expm1(x: jax.Array) -> jax.Array:
    """e^x − 1, which above x = 30 goes on along its tangent."""
    cap = _LARGEST_EXPONENT
    top = jnp.exp(jnp.float32(cap))
    return jnp.where(x <= cap, jnp.expm1(jnp.minimum(x, cap)), top * (1 + x - cap) - 1)


def divergence_scores(logratios: jax.Array, kind: Divergence, alpha: float) -> jax.Array:
    """f'(π / ref) up to a constant, so that it is 0 where the policy equals its reference.

    Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
    Divergence Constraints", table 1.

    >>> import numpy as np
    >>> divergence_scores(np.zeros(1, np.float32), "js_divergence", 0.5)
    Array([0.], dtype=float32)

    Args:
      logratios: f32 `[...]`, u = log π − log ref.
      kind: reverse_kl u; forward_kl 1 − e^−u; js_divergence log 2 + log σ(u); alpha_divergence
        (e^((α−1)u) − 1) / (α − 1).
      alpha: Of the alpha-divergence; at 1 it is the reverse KL.
    """
    if kind == "forward_kl":
        return -capped_expm1(-logratios)
    if kind == "js_divergence":
        # log σ(u) = −log 2 at 0 in the same rounding, so that the score there is 0 exactly.
        return log_sigmoid(logratios) - log_sigmoid(jnp.zeros((), logratios.dtype))
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
    """DPO: −(1−ε) log σ(x) − ε log σ(−x), x = β(a_c − a_r) − margin.

    Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
    Model", equation 7; with ε cDPO, Mitchell 2023, "A note on DPO with noisy preferences", equation
    3 (TRL 1.16 ignores ε here); with a margin ODPO, Amini et al. 2024, "Direct Preference
    Optimization with an Offset", equation 7. At the reference it is log 2.

    >>> import numpy as np
    >>> sigmoid_loss(*np.zeros((2, 1), np.float32), beta=0.1).round(4)
    Array([0.6931], dtype=float32)
    """
    return smoothed(beta * (chosen_logratios - rejected_logratios) - margins, label_smoothing)


def smoothed(logits: jax.Array, label_smoothing: float) -> jax.Array:
    """−(1−ε) log σ(x) − ε log σ(−x)."""
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
    """RSO and SLiC: max(0, 1 − x), x = β(a_c − a_r) − margin.

    Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", equation 10.
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
    """IPO: (a_c / n_c − a_r / n_r − 1 / 2β)², averaged over each completion's n tokens.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", equation 17, β written τ; the average over tokens is what its authors use.
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
    """Length-normalised DPO: −log σ(β(a_c / n_c − a_r / n_r) − margin).

    Lambert et al. 2024, "Tülu 3: Pushing Frontiers in Open Language Model Post-Training",
    equation 6. Its β is larger than DPO's by about the number of tokens (5 in the paper).
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
    """Robust DPO: [−(1−ε) log σ(x) + ε log σ(−x)] / (1 − 2ε), unbiased if a share ε is flipped.

    Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    equation 12.
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
    """EXO: KL of (σ(x), σ(−x)) from (1−ε, ε).

    Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment",
    equation 16, for two completions.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    right = log_sigmoid(logits) - jnp.log1p(-label_smoothing)
    wrong = log_sigmoid(-logits) - jnp.log(label_smoothing)
    return sigmoid(logits) * right + sigmoid(-logits) * wrong


def nca_pair_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """NCA: −log σ(βa_c) − ½ log σ(−βa_c) − ½ log σ(−βa_r).

    Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards",
    equation 11, for two completions.
    """
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """BCO on pairs: −log σ(βa_c) − log σ(−βa_r).

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment",
    equation 9, its reward shift δ being 0.
    """
    return -log_sigmoid(beta * chosen_logratios) - log_sigmoid(-beta * rejected_logratios)


def sppo_hard_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """SPPO: (a_c − 1 / 2β)² + (a_r + 1 / 2β)².

    Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", equation 4.7
    with the win rate of the chosen completion taken as 1.
    """
    target = 1 / (2 * beta)
    return jnp.square(chosen_logratios - target) + jnp.square(rejected_logratios + target)


def apo_zero_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """APO-zero: 1 − σ(βa_c) + σ(βa_r), for chosen completions better than the model's own.

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions",
    equation 7.
    """
    return sigmoid(-beta * chosen_logratios) + sigmoid(beta * rejected_logratios)


def apo_down_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float
) -> jax.Array:
    """APO-down: σ(βa_c) + 1 − σ(β(a_c − a_r)), for chosen completions worse than the model's own.

    D'Oosterlinck et al. 2024, equation 8.
    """
    difference = chosen_logratios - rejected_logratios
    return sigmoid(beta * chosen_logratios) + sigmoid(-beta * difference)


def discopop_loss(
    chosen_logratios: jax.Array, rejected_logratios: jax.Array, *, beta: float, tau: float
) -> jax.Array:
    """DiscoPOP: −log σ(x)(1 − m) + e^−x m, m = σ(x / τ), x = β(a_c − a_r).

    Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language
    Models", equation 5. Where x is far below 0, e^−x overflows and m underflows; here their
    product is one exponential, e^(−x + log m), bounded for τ < 1 (TRL 1.16 gives NaN).
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    logistic = -log_sigmoid(logits) * sigmoid(-logits / tau)
    return logistic + jnp.exp(-logits + log_sigmoid(logits / tau))


def mismatched_kl(mismatched_logratios: jax.Array, is_pair: jax.Array) -> jax.Array:
    """KTO's z: max(0, the mean log-ratio of answers to other prompts); no gradient goes through it.

    Ethayarajh et al. 2024, section 4.1, over the optimizer step's answers (TRL: a micro-batch's).

    Args:
      mismatched_logratios: f32 `[...]`, log π − log ref, summed over tokens, in nats.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalar.
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
    """KTO: λ_D (1 − σ(β(a − z))) of an answer found good, λ_U (1 − σ(β(z − a))) of a bad one.

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
    """AOT: `smoothed(βδ)` of the sorted differences δ = sort(first) − sort(second).

    Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport",
    equations 7 and 9: paired with the margins c − r of policy and reference, unpaired with the
    log-ratios of chosen and of rejected completions. All pairs of the optimizer step are sorted
    together (TRL sorts each micro-batch by itself).

    Args:
      policy_margins: f32 `[n]`.
      reference_margins: f32 `[n]`.
      is_pair: bool `[n]`, false where there is padding.
      beta: As in DPO.
      label_smoothing: ε.

    Returns:
      f32 `[n]`, by rank; the first as many as there are pairs count, the others are 0.
    """

    def ranked(values: jax.Array) -> jax.Array:
        return jnp.sort(jnp.where(is_pair, values, jnp.finfo(jnp.float32).max))

    counted = jnp.arange(is_pair.size) < jnp.sum(is_pair)
    difference = jnp.where(counted, ranked(policy_margins) - ranked(reference_margins), 0.0)
    return jnp.where(counted, smoothed(beta * difference, label_smoothing), 0.0)

"""What a run minimises: the configured losses of a batch's pairs, weighted and added up."""

import jax
import jax.numpy as jnp

from jaxdpo.completions import Completions
from jaxdpo.losses import against_reference as ref
from jaxdpo.losses import without_reference as free
from jaxdpo.losses.config import LossConfig, LossName

_DEFAULT_GAMMA, _DEFAULT_TAU, _DEFAULT_ALPHA = 0.5, 0.05, 0.5


def pair_losses(
    config: LossConfig,
    policy: Completions,
    reference_logps: jax.Array | None,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
    margins: jax.Array | None = None,
) -> dict[LossName, jax.Array]:
    """Each configured loss of every pair, unweighted.

    Args:
      config: Which losses.
      policy: The policy's scores, `[..., 2]`.
      reference_logps: f32 `[..., 2]`; None for no reference, whose log-probs count as 0.
      is_pair: bool `[...]`, false where there is padding; the losses there mean nothing.
      mean_chosen_tokens: f32 scalar, tokens of a chosen completion, averaged over the step's pairs.
      margins: f32 `[...]`, target margins from the data, or None.

    Returns:
      Loss ↦ f32 `[...]`. The losses of `config.coupled` are by rank, not by pair: only their sum
      has a meaning.
    """
    # Padding has no tokens; any positive number keeps its unused losses finite.
    tokens = jnp.maximum(policy.tokens, 1.0)
    reference = jnp.zeros_like(policy.logps) if reference_logps is None else reference_logps
    ratios = policy.logps - reference
    alpha = _DEFAULT_ALPHA if config.alpha is None else config.alpha
    scores = ref.divergence_scores(ratios, config.f_divergence, alpha)
    both = (ratios[..., 0], ratios[..., 1])
    diverging = (scores[..., 0], scores[..., 1])
    counts = (tokens[..., 0], tokens[..., 1])
    summed = (policy.logps[..., 0], policy.logps[..., 1])
    averaged = (policy.logps[..., 0] / tokens[..., 0], policy.logps[..., 1] / tokens[..., 1])
    sft = free.sft_loss(policy.plain_logps[..., 0], mean_chosen_tokens)
    beta, epsilon = config.beta, config.label_smoothing
    gamma = _DEFAULT_GAMMA if config.gamma is None else config.gamma
    tau = _DEFAULT_TAU if config.discopop_tau is None else config.discopop_tau
    offsets = 0.0 if margins is None else margins

    def aot(first: jax.Array, second: jax.Array) -> jax.Array:
        return ref.aot_loss(
            first.reshape(-1),
            second.reshape(-1),
            is_pair.reshape(-1),
            beta=beta,
            label_smoothing=epsilon,
        ).reshape(first.shape)

    formulas = {
        "sigmoid": lambda: ref.sigmoid_loss(
            *diverging, beta=beta, label_smoothing=epsilon, margins=offsets
        ),
        "hinge": lambda: ref.hinge_loss(*diverging, beta=beta, margins=offsets),
        "ipo": lambda: ref.ipo_loss(*diverging, *counts, beta=beta),
        "sigmoid_norm": lambda: ref.sigmoid_norm_loss(
            *diverging, *counts, beta=beta, margins=offsets
        ),
        "robust": lambda: ref.robust_loss(*diverging, beta=beta, label_smoothing=epsilon),
        "exo_pair": lambda: ref.exo_pair_loss(*diverging, beta=beta, label_smoothing=epsilon),
        "nca_pair": lambda: ref.nca_pair_loss(*both, beta=beta),
        "bco_pair": lambda: ref.bco_pair_loss(*both, beta=beta),
        "sppo_hard": lambda: ref.sppo_hard_loss(*both, beta=beta),
        "aot": lambda: aot(summed[0] - summed[1], reference[..., 0] - reference[..., 1]),
        "aot_unpaired": lambda: aot(*both),
        "apo_zero": lambda: ref.apo_zero_loss(*both, beta=beta),
        "apo_down": lambda: ref.apo_down_loss(*both, beta=beta),
        "discopop": lambda: ref.discopop_loss(*diverging, beta=beta, tau=tau),
        "orpo": lambda: free.orpo_loss(*averaged, sft, beta=beta),
        "simpo": lambda: free.simpo_loss(
            *averaged, beta=beta, gamma=gamma, label_smoothing=epsilon, margins=offsets
        ),
        "cpo": lambda: free.cpo_loss(*summed, sft, beta=beta, label_smoothing=epsilon),
        "alphapo": lambda: free.alphapo_loss(*averaged, beta=beta, gamma=gamma, alpha=alpha),
        "sft": lambda: sft,
    }
    return {name: formulas[name]() for name in config.type}


def loss_sums(
    config: LossConfig,
    policy: Completions,
    reference_logps: jax.Array | None,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
    margins: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Sums over pairs: `loss`, and of a mixture each `loss/<name>`, unweighted.

    Args:
      config: Which losses, and how they are weighted.
      policy: As in `pair_losses`, and so are the next four.
      reference_logps: See above.
      is_pair: See above.
      mean_chosen_tokens: See above.
      margins: See above.
      weights: f32 `[...]`, factors on the pairs' losses from the data, or None.
    """
    losses = pair_losses(config, policy, reference_logps, is_pair, mean_chosen_tokens, margins)
    factors = jnp.where(is_pair, 1.0, 0.0) if weights is None else jnp.where(is_pair, weights, 0.0)
    if config.use_weighting:
        assert policy.log_weights is not None
        # Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", equation 2.
        log_weights = jax.lax.stop_gradient(policy.log_weights.sum(-1))
        factors = factors * jnp.exp(log_weights)
    # Coupled losses are by rank, with 0 where there is no pair, and take no factors.
    sums = {
        name: jnp.sum(losses[name])
        if name in ("aot", "aot_unpaired")
        else jnp.sum(jnp.where(is_pair, losses[name] * factors, 0.0))
        for name in config.type
    }
    total = sum((weight * sums[name] for name, weight in config.weighted_types()), jnp.zeros(()))
    parts = {f"loss/{name}": value for name, value in sums.items()} if len(sums) > 1 else {}
    return {"loss": total, **parts}


def implicit_rewards(
    config: LossConfig, policy: Completions, reference_logps: jax.Array | None
) -> jax.Array:
    """β(log π − log ref), f32 `[..., 2]`; without a reference β log π.

    simpo, orpo and alphapo compare log-probs a token, so their rewards are of those.
    """
    if reference_logps is not None:
        return config.beta * (policy.logps - reference_logps)
    if {"simpo", "orpo", "alphapo"} & set(config.type):
        return config.beta * policy.logps / jnp.maximum(policy.tokens, 1.0)
    return config.beta * policy.logps

"""What a run minimises: the configured losses of a batch's pairs, weighted and added up."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdpo.losses import against_reference as ref
from jaxdpo.losses import without_reference as free
from jaxdpo.losses.config import SORTED, LossConfig, LossName
from jaxdpo.scoring.scores import Completions

_DEFAULT_GAMMA, _DEFAULT_TAU, _DEFAULT_ALPHA = 0.5, 0.05, 0.5


def pair_losses(
    config: LossConfig,
    policy: Completions,
    reference_logps: jax.Array | None,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
    margins: jax.Array | None = None,
    labels: jax.Array | None = None,
) -> dict[LossName, jax.Array]:
    """Each configured loss of every pair, unweighted.

    Args:
      config: Which losses.
      policy: The policy's scores, `[..., 2]`.
      reference_logps: f32 `[..., 2]`; None for no reference, whose log-probs count as 0.
      is_pair: bool `[...]`, false where there is padding; the losses there mean nothing.
      mean_chosen_tokens: f32 scalar, tokens of a chosen completion, averaged over the step's pairs.
      margins: f32 `[...]`, target margins from the data, or None.
      labels: f32 `[...]`, of kto's answers 1 where they were found good, 0 where not, or None.

    Returns:
      Loss ↦ f32 `[...]`. Losses that sort the pairs are by rank, not by pair: only their sum has a
      meaning.
    """
    # Padding has no tokens; any positive number keeps its unused losses finite.
    tokens = jnp.maximum(policy.tokens, 1.0)
    scored = policy._replace(tokens=tokens)
    sft = free.sft_loss(policy.plain_logps[..., 0], mean_chosen_tokens)
    reference = jnp.zeros_like(policy.logps) if reference_logps is None else reference_logps
    offsets = 0.0 if margins is None else margins
    formulas = {
        **_against_reference(config, scored, reference, is_pair, offsets),
        **_without_reference(config, scored, sft, offsets),
        "kto": lambda: _kto(config, policy.logps - reference, is_pair, labels),
    }
    return {name: formulas[name]() for name in config.type}


def _kto(
    config: LossConfig, ratios: jax.Array, is_pair: jax.Array, labels: jax.Array | None
) -> jax.Array:
    assert labels is not None
    return ref.kto_loss(
        ratios[..., 0],
        labels,
        ref.mismatched_kl(ratios[..., 1], is_pair),
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )


def _against_reference(
    config: LossConfig,
    policy: Completions,
    reference: jax.Array,
    is_pair: jax.Array,
    margins: jax.Array | float,
) -> dict[str, Callable[[], jax.Array]]:
    ratios, tokens = policy.logps - reference, policy.tokens
    alpha = _DEFAULT_ALPHA if config.alpha is None else config.alpha
    scores = ref.divergence_scores(ratios, config.f_divergence, alpha)
    both = (ratios[..., 0], ratios[..., 1])
    diverging = (scores[..., 0], scores[..., 1])
    counts = (tokens[..., 0], tokens[..., 1])
    beta, epsilon = config.beta, config.label_smoothing
    tau = _DEFAULT_TAU if config.discopop_tau is None else config.discopop_tau

    def aot(first: jax.Array, second: jax.Array) -> jax.Array:
        return ref.aot_loss(
            first.reshape(-1),
            second.reshape(-1),
            is_pair.reshape(-1),
            beta=beta,
            label_smoothing=epsilon,
        ).reshape(first.shape)

    def margin(logps: jax.Array) -> jax.Array:
        return logps[..., 0] - logps[..., 1]

    return {
        "sigmoid": lambda: ref.sigmoid_loss(
            *diverging, beta=beta, label_smoothing=epsilon, margins=margins
        ),
        "hinge": lambda: ref.hinge_loss(*diverging, beta=beta, margins=margins),
        "ipo": lambda: ref.ipo_loss(*diverging, *counts, beta=beta),
        "sigmoid_norm": lambda: ref.sigmoid_norm_loss(
            *diverging, *counts, beta=beta, margins=margins
        ),
        "robust": lambda: ref.robust_loss(*diverging, beta=beta, label_smoothing=epsilon),
        "exo_pair": lambda: ref.exo_pair_loss(*diverging, beta=beta, label_smoothing=epsilon),
        "nca_pair": lambda: ref.nca_pair_loss(*both, beta=beta),
        "bco_pair": lambda: ref.bco_pair_loss(*both, beta=beta),
        "sppo_hard": lambda: ref.sppo_hard_loss(*both, beta=beta),
        "aot": lambda: aot(margin(policy.logps), margin(reference)),
        "aot_unpaired": lambda: aot(*both),
        "apo_zero": lambda: ref.apo_zero_loss(*both, beta=beta),
        "apo_down": lambda: ref.apo_down_loss(*both, beta=beta),
        "discopop": lambda: ref.discopop_loss(*diverging, beta=beta, tau=tau),
    }


def _without_reference(
    config: LossConfig, policy: Completions, sft: jax.Array, margins: jax.Array | float
) -> dict[str, Callable[[], jax.Array]]:
    means = policy.logps / policy.tokens
    summed = (policy.logps[..., 0], policy.logps[..., 1])
    averaged = (means[..., 0], means[..., 1])
    beta, epsilon = config.beta, config.label_smoothing
    alpha = _DEFAULT_ALPHA if config.alpha is None else config.alpha
    gamma = _DEFAULT_GAMMA if config.gamma is None else config.gamma
    return {
        "orpo": lambda: free.orpo_loss(*averaged, sft, beta=beta),
        "simpo": lambda: free.simpo_loss(
            *averaged, beta=beta, gamma=gamma, label_smoothing=epsilon, margins=margins
        ),
        "cpo": lambda: free.cpo_loss(*summed, sft, beta=beta, label_smoothing=epsilon),
        "alphapo": lambda: free.alphapo_loss(*averaged, beta=beta, gamma=gamma, alpha=alpha),
        "sft": lambda: sft,
    }


def loss_sums(
    config: LossConfig,
    policy: Completions,
    reference_logps: jax.Array | None,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
    margins: jax.Array | None = None,
    weights: jax.Array | None = None,
    labels: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Sums over pairs: `loss`, and of a mixture each `loss/<name>`, unweighted.

    Of kto also `kl`, its z, and `rewards/accuracies`, the answers whose log-ratio lies on that side
    of z which their label asks for (ties count one half).

    Args:
      config: Which losses, and how they are weighted.
      policy: As in `pair_losses`, and so are the next four.
      reference_logps: See above.
      is_pair: See above.
      mean_chosen_tokens: See above.
      margins: See above.
      weights: f32 `[...]`, factors on the pairs' losses from the data, or None.
      labels: As in `pair_losses`.
    """
    losses = pair_losses(
        config, policy, reference_logps, is_pair, mean_chosen_tokens, margins, labels
    )
    factors = jnp.where(is_pair, 1.0, 0.0) if weights is None else jnp.where(is_pair, weights, 0.0)
    if config.use_weighting:
        assert policy.log_weights is not None
        # Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", equation 2.
        log_weights = jax.lax.stop_gradient(policy.log_weights.sum(-1))
        factors = factors * jnp.exp(log_weights)
    # Sorted losses are by rank, with 0 where there is no pair, and take no factors.
    sums = {
        name: jnp.sum(losses[name])
        if name in SORTED
        else jnp.sum(jnp.where(is_pair, losses[name] * factors, 0.0))
        for name in config.type
    }
    total = sum((weight * sums[name] for name, weight in config.weighted_types()), jnp.zeros(()))
    parts = {f"loss/{name}": value for name, value in sums.items()} if len(sums) > 1 else {}
    if labels is not None:
        parts = _kto_sums(policy, reference_logps, is_pair, labels)
    return {"loss": total, **parts}


def _kto_sums(
    policy: Completions, reference_logps: jax.Array | None, is_pair: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    ratios = policy.logps if reference_logps is None else policy.logps - reference_logps
    kl = ref.mismatched_kl(ratios[..., 1], is_pair)
    right = 0.5 * (1 + jnp.sign(ratios[..., 0] - kl) * jnp.where(labels > 0, 1.0, -1.0))
    return {
        "kl": kl * jnp.sum(is_pair),
        "rewards/accuracies": jnp.sum(jnp.where(is_pair, right, 0.0)),
    }


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

"""The objective of a step: the configured losses of its pairs, weighted and added up."""

import jax
import jax.numpy as jnp

from jaxdpo.losses.against_reference import divergence_scores
from jaxdpo.losses.config import LossConfig
from jaxdpo.losses.coupled import mismatched_kl
from jaxdpo.losses.table import LOSSES, LossName
from jaxdpo.losses.without_reference import sft_loss
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores


def pair_losses(
    config: LossConfig,
    policy: CompletionScores,
    columns: PairColumns,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
) -> dict[LossName, jax.Array]:
    """Computes each configured loss of every pair, unweighted.

    Args:
      config: Which losses.
      policy: The policy's scores, `[..., 2]`.
      columns: The pairs' own numbers, `[...]`; without reference log-probs these count as 0.
      is_pair: bool `[...]`, false where there is padding; the losses there mean nothing.
      mean_chosen_tokens: f32 scalar, tokens of a chosen completion, averaged over the step's pairs.

    Returns:
      Loss ↦ f32 `[...]`. Losses that sort the pairs are by rank, not by pair: only their sum has a
      meaning.
    """
    logprobs = logprob_arrays(policy, columns, is_pair, mean_chosen_tokens)
    losses = {}
    for name in config.type:
        loss, logratios = LOSSES[name], logratio_arrays(config, name, policy, columns)
        known = {**logprobs, **logratios, **config.formula_options()}
        # A formula is given what its parameters ask for, by name.
        losses[name] = loss.formula(**{each: known[each] for each in loss.parameters})
    return losses


def logprob_arrays(
    policy: CompletionScores,
    columns: PairColumns,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
) -> dict[str, jax.Array | float]:
    """Returns the arrays, by the names of the formulas' parameters, that no option changes.

    Args:
      policy: The policy's scores, `[..., 2]`.
      columns: The pairs' own numbers, `[...]`.
      is_pair: bool `[...]`.
      mean_chosen_tokens: f32 scalar.
    """
    # Padding has no tokens; any positive number keeps its unused losses finite.
    tokens = jnp.maximum(policy.tokens, 1.0)
    means = policy.logps / tokens
    reference = _reference_logps(policy, columns)
    arrays = {
        "chosen_tokens": tokens[..., 0],
        "rejected_tokens": tokens[..., 1],
        "chosen_logps": policy.logps[..., 0],
        "rejected_logps": policy.logps[..., 1],
        "chosen_mean_logps": means[..., 0],
        "rejected_mean_logps": means[..., 1],
        "chosen_plain_logps": policy.plain_logps[..., 0],
        "mean_chosen_tokens": mean_chosen_tokens,
        "sft_losses": sft_loss(policy.plain_logps[..., 0], mean_chosen_tokens),
        "policy_margins": policy.logps[..., 0] - policy.logps[..., 1],
        "reference_margins": reference[..., 0] - reference[..., 1],
        "margins": 0.0 if columns.margins is None else columns.margins,
        "is_pair": is_pair,
    }
    if columns.labels is not None:
        # KTO: answers stand in the place of chosen completions, mismatched ones in the other.
        logratios = policy.logps - reference
        arrays["logratios"] = logratios[..., 0]
        arrays["kl"] = mismatched_kl(logratios[..., 1], is_pair)
        arrays["labels"] = columns.labels
    return arrays


def logratio_arrays(
    config: LossConfig, name: LossName, policy: CompletionScores, columns: PairColumns
) -> dict[str, jax.Array]:
    """Returns log π − log ref of both completions, under the divergence if the loss reads one.

    Args:
      config: The divergence.
      name: The loss.
      policy: The policy's scores, `[..., 2]`.
      columns: The pairs' own numbers, for the reference log-probs.
    """
    logratios = policy.logps - _reference_logps(policy, columns)
    if "f_divergence" in LOSSES[name].options:
        logratios = divergence_scores(
            logratios, config.f_divergence, config.formula_options()["alpha"]
        )
    return {"chosen_logratios": logratios[..., 0], "rejected_logratios": logratios[..., 1]}


def _reference_logps(policy: CompletionScores, columns: PairColumns) -> jax.Array:
    return jnp.zeros_like(policy.logps) if columns.reference is None else columns.reference


def loss_sums(
    config: LossConfig,
    policy: CompletionScores,
    columns: PairColumns,
    is_pair: jax.Array,
    mean_chosen_tokens: jax.Array,
) -> dict[str, jax.Array]:
    """Sums the losses over pairs: `loss`, and of a mixture each `loss/<name>`, unweighted.

    KTO has beside it `kl`, its z, and `rewards/accuracies`, the answers whose log-ratio lies on
    that side of z which their label asks for (ties count one half).

    Args:
      config: Which losses, and how they are weighted.
      policy: The policy's scores, `[..., 2]`.
      columns: The pairs' own numbers, `[...]`, their weights among them.
      is_pair: bool `[...]`, false where there is padding.
      mean_chosen_tokens: f32 scalar, tokens of a chosen completion, averaged over the step's pairs.
    """
    losses = pair_losses(config, policy, columns, is_pair, mean_chosen_tokens)
    weights = columns.weights
    factors = jnp.where(is_pair, 1.0, 0.0) if weights is None else jnp.where(is_pair, weights, 0.0)
    if config.use_weighting:
        assert policy.log_weights is not None
        # Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", equation 2.
        # The weight says how much a pair counts; the policy must not learn to change it.
        log_weights = jax.lax.stop_gradient(policy.log_weights.sum(-1))
        factors = factors * jnp.exp(log_weights)
    # Sorted losses are by rank, with 0 where there is no pair, and take no factors. Elsewhere
    # `where` and not a product alone: 0 times an infinite loss of padding is NaN.
    sums = {
        name: jnp.sum(losses[name])
        if LOSSES[name].sorts
        else jnp.sum(jnp.where(is_pair, losses[name] * factors, 0.0))
        for name in config.type
    }
    total = sum((weight * sums[name] for name, weight in config.weighted_types()), jnp.zeros(()))
    parts = {f"loss/{name}": value for name, value in sums.items()} if len(sums) > 1 else {}
    if columns.labels is not None:
        parts = _kto_sums(policy, columns, is_pair)
    return {"loss": total, **parts}


def _kto_sums(
    policy: CompletionScores, columns: PairColumns, is_pair: jax.Array
) -> dict[str, jax.Array]:
    assert columns.labels is not None
    logratios = policy.logps - _reference_logps(policy, columns)
    kl = mismatched_kl(logratios[..., 1], is_pair)
    side = jnp.where(columns.labels > 0, 1.0, -1.0)
    right = 0.5 * (1 + jnp.sign(logratios[..., 0] - kl) * side)
    return {
        # Metrics are sums over pairs that are divided by their number at the end.
        "kl": kl * jnp.sum(is_pair),
        "rewards/accuracies": jnp.sum(jnp.where(is_pair, right, 0.0)),
    }


def implicit_rewards(
    config: LossConfig, policy: CompletionScores, reference_logps: jax.Array | None
) -> jax.Array:
    """Computes β(log π − log ref), f32 `[..., 2]`; without a reference β log π.

    Losses that compare log-probs a token without a reference have rewards of those.

    Args:
      config: β, and which losses.
      policy: The policy's scores, `[..., 2]`.
      reference_logps: f32 `[..., 2]`, or None for no reference.
    """
    if reference_logps is not None:
        return config.beta * (policy.logps - reference_logps)
    if any(LOSSES[name].averages for name in config.type):
        return config.beta * policy.logps / jnp.maximum(policy.tokens, 1.0)
    return config.beta * policy.logps

"""What a step reports, by the field's names; sums over pairs first, means at the end."""

import jax
import jax.numpy as jnp

from jaxdpo.completions import Completions

# Sums over tokens ↦ the sum of the tokens they are over, and what the quotient is called.
_PER_TOKEN = {
    "logps/chosen": ("lengths/chosen", "logps/chosen_per_token"),
    "logps/rejected": ("lengths/rejected", "logps/rejected_per_token"),
    "entropy_sum": ("lengths/all", "entropy"),
    "correct_sum": ("lengths/chosen", "token_accuracy"),
}
_ONLY_SUMS = ("entropy_sum", "correct_sum", "lengths/all")


def reward_sums(rewards: jax.Array, is_pair: jax.Array) -> dict[str, jax.Array]:
    """Sums over pairs of rewards, margins and accuracies.

    Ties count one half in the accuracies, so a policy equal to its reference reads 0.5.

    Args:
      rewards: f32 `[..., 2]`, of chosen and rejected completions.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalars, to be added over batches.
    """
    chosen, rejected = rewards[..., 0], rewards[..., 1]
    margins = chosen - rejected
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": 0.5 * (jnp.sign(margins) + 1),
    }
    return {name: jnp.sum(jnp.where(is_pair, value, 0.0)) for name, value in per_pair.items()}


def completion_sums(
    policy: Completions, reference_logps: jax.Array | None, is_pair: jax.Array
) -> dict[str, jax.Array]:
    """Sums over pairs of what the policy says of the completions.

    `kl` is (log π − log ref)² / 2n of a completion of n tokens, averaged over the pair's two: a
    lower bound, from sums alone, of the sum over its tokens of Schulman's estimator ½(log r)² of
    the KL divergence ("Approximating KL Divergence", 2020, k2), taken on the data's completions.

    Args:
      policy: The policy's scores, f32 `[..., 2]`.
      reference_logps: f32 `[..., 2]`, or None for no reference.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalars, to be added over batches; `num_pairs` counts what they sum over.
    """
    tokens = policy.tokens
    per_pair = {
        "logps/chosen": policy.plain_logps[..., 0],
        "logps/rejected": policy.plain_logps[..., 1],
        "lengths/chosen": tokens[..., 0],
        "lengths/rejected": tokens[..., 1],
        "num_pairs": jnp.ones_like(tokens[..., 0]),
    }
    if reference_logps is not None:
        ratios = policy.logps - reference_logps
        per_pair["kl"] = jnp.mean(jnp.square(ratios) / (2 * jnp.maximum(tokens, 1.0)), axis=-1)
    if policy.entropy is not None and policy.correct is not None:
        per_pair["entropy_sum"] = policy.entropy.sum(-1)
        per_pair["correct_sum"] = policy.correct[..., 0]
        per_pair["lengths/all"] = tokens.sum(-1)
    return {name: jnp.sum(jnp.where(is_pair, value, 0.0)) for name, value in per_pair.items()}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Divides what was summed over pairs by `num_pairs`, or over tokens by the tokens.

    Counts (`num_*`) are kept.
    """
    averaged = {
        name: value if name.startswith("num_") else value / sums["num_pairs"]
        for name, value in sums.items()
        if name not in _ONLY_SUMS
    }
    for name, (tokens, quotient) in _PER_TOKEN.items():
        # Supervised data has no rejected completions.
        if name in sums and sums[tokens] > 0:
            averaged[quotient] = sums[name] / sums[tokens]
        elif name in averaged:
            del averaged[name], averaged[tokens]
    return averaged

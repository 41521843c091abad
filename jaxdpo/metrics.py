"""What a step reports, by the field's names; sums over pairs first, means at the end."""

import jax
import jax.numpy as jnp


def preference_sums(
    policy_logps: jax.Array, reference_logps: jax.Array, is_pair: jax.Array, beta: float
) -> dict[str, jax.Array]:
    """Sums over pairs of rewards, accuracies and log-probs.

    A pair's reward is β(log π − log ref) of its completion, summed over tokens. Ties count one
    half in the accuracies, so a policy equal to its reference reads 0.5.

    Args:
      policy_logps: f32 `[..., 2]`, chosen and rejected completion log-probs, in nats.
      reference_logps: f32 `[..., 2]`.
      is_pair: bool `[...]`, false where there is padding.
      beta: As in the loss.

    Returns:
      f32 scalars, to be added over batches; `num_pairs` counts what they sum over.
    """
    rewards = beta * (policy_logps - reference_logps)
    chosen, rejected = rewards[..., 0], rewards[..., 1]
    margins = chosen - rejected
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": 0.5 * (jnp.sign(margins) + 1),
        "logps/chosen": policy_logps[..., 0],
        "logps/rejected": policy_logps[..., 1],
        "num_pairs": jnp.ones_like(chosen),
    }
    return {name: jnp.sum(jnp.where(is_pair, value, 0.0)) for name, value in per_pair.items()}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Divides what was summed over pairs by `num_pairs`, and keeps the counts (`num_*`)."""
    return {
        name: value if name.startswith("num_") else value / sums["num_pairs"]
        for name, value in sums.items()
    }

"""Preference losses: pure functions of completion log-probs."""

import jax
from pydantic import BaseModel, ConfigDict, Field


class LossConfig(BaseModel):
    """What is minimised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = Field(
        default=0.1,
        gt=0,
        description="strength of the pull to the reference model, 1/nats of reward",
    )


def sigmoid_loss(
    policy_chosen_logps: jax.Array,
    policy_rejected_logps: jax.Array,
    reference_chosen_logps: jax.Array,
    reference_rejected_logps: jax.Array,
    *,
    beta: float,
) -> jax.Array:
    """DPO: −log σ(β[(log π_c − log ref_c) − (log π_r − log ref_r)]).

    At a policy equal to the reference it is log 2. Rafailov et al. 2023, "Direct Preference
    Optimization: Your Language Model is Secretly a Reward Model", equation 7.

    >>> import numpy as np
    >>> sigmoid_loss(*np.zeros((4, 1), np.float32), beta=0.1).round(4)
    Array([0.6931], dtype=float32)

    Args:
      policy_chosen_logps: f32 `[...]`, sums over the completion's tokens, in nats; the other three
        likewise.
      policy_rejected_logps: See above.
      reference_chosen_logps: See above.
      reference_rejected_logps: See above.
      beta: Inverse temperature, dimensionless.

    Returns:
      f32 `[...]`, one loss a pair, in nats.
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    return -jax.nn.log_sigmoid(beta * (chosen_logratios - rejected_logratios))

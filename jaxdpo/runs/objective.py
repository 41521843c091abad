"""The objective and the update rule that a configuration describes."""

import jax.numpy as jnp

from jaxdpo.config import RunConfig
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.training.objective import MovingReference, Objective
from jaxdpo.training.optimizer import Optimizer


def objective_of(config: RunConfig, model: ModelConfig, compute: Compute) -> Objective:
    """Returns what the run's steps minimise.

    Args:
      config: The run.
      model: Architecture.
      compute: How it is computed.
    """
    moving = config.reference_kind == "moving"
    # Everything static comes from here, so that what is planned, trained and tried is one program.
    return Objective(
        model,
        compute,
        config.loss,
        config.batch.size,
        config.training.seed,
        # Without a reference its log-probs count as 0, which leaves the policy's own as the reward.
        has_reference=config.reference_kind != "none",
        moving=MovingReference(*config.reference.moves) if moving else None,
        keeps_reference=config.reference_kind == "frozen",
        offloaded=config.reference.offload,
        param_dtype=jnp.dtype(config.model.param_dtype),
    )


def optimizer_of(config: RunConfig, num_steps: int) -> Optimizer:
    """Returns the run's update rule.

    Args:
      config: The run.
      num_steps: Optimizer steps of the run.
    """
    # The number of steps is a part of the rule: schedules fall over all of them.
    return Optimizer(config.optimizer, num_steps, lora=config.lora is not None)

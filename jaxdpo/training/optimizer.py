"""The update rule of a run: clipping, a rule by name, weight decay, warm-up and a schedule."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdpo.model.decoder import Params
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.update_rules import direction_of


@dataclass(frozen=True)
class Optimizer:
    """The update rule over the steps of a run, as static values.

    Attributes:
      config: Its options.
      num_steps: Optimizer steps of the run, over which the learning rate falls.
      lora: Whether adapters are trained, whose default rate is higher.
    """

    config: OptimizerConfig
    num_steps: int
    lora: bool = False

    def schedule(self) -> optax.Schedule:
        """Returns step (from 0) ↦ learning rate."""
        return make_schedule(self.config, self.num_steps, self.lora)

    def update_rule(self) -> optax.GradientTransformation:
        """Returns clipping and the rule at the schedule's rate."""
        return make_optimizer(self.config, self.schedule())

    def keeps_average(self) -> bool:
        """Tells whether an average of the weights is evaluated and exported in their place."""
        return self.config.ema_decay is not None or self.config.name == "schedule_free"

    def average(self, before: Params, rule: Any, trainable: Params, step: jax.Array) -> Any:
        """Returns the average of the weights after a step.

        Args:
          before: The average before the step.
          rule: The update rule's state after it.
          trainable: The weights after it.
          step: i32, steps done before it.
        """
        if self.config.name == "schedule_free":
            return optax.contrib.schedule_free_eval_params(rule, trainable)
        assert self.config.ema_decay is not None
        # The first averages are of few weights: with the whole decay from the start, a run shorter
        # than 1 / (1 - decay) steps would end with little more than the weights it began with.
        decay = jnp.minimum(self.config.ema_decay, (1.0 + step) / (10.0 + step))
        return optax.incremental_update(trainable, before, 1.0 - decay)


def make_schedule(config: OptimizerConfig, num_steps: int, lora: bool) -> optax.Schedule:
    """Returns step (from 0) ↦ learning rate: linear warm-up to the peak, then down to 0.

    Args:
      config: Peak, shape, and share of the steps that warm up.
      num_steps: Optimizer steps of the run.
      lora: Whether adapters are trained, whose default peak is higher.
    """
    peak = config.peak(lora)
    warmup = round(config.warmup_ratio * num_steps)
    # At least one step, so that a run that is all warm-up divides by no 0.
    rest = max(1, num_steps - warmup)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns clipping by global norm, then the rule with decoupled decay at the schedule's rate.

    With AdamW it is Loshchilov & Hutter 2019, algorithm 2; decay is decoupled in the same way from
    every other rule.
    """
    clip = (
        optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm)
    )
    rule = optax.chain(
        direction_of(config),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(schedule),
    )
    # Clipped before the moments see it: one exploding gradient would stay in the mean of squares
    # for a thousand steps.
    parts = [clip, rule]
    if config.loraplus_lr_ratio is not None:
        # Last, so that it is a factor on the rate: a rule's own division by the gradients' size
        # would take a factor on them out again.
        parts.append(optax.masked(optax.scale(config.loraplus_lr_ratio), _learns_faster))
    if config.name != "schedule_free":
        return optax.chain(*parts)
    # Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5. It weighs the steps of the
    # warm-up less, by their rate, and so has to know the schedule.
    return optax.contrib.schedule_free(optax.chain(*parts), schedule, b1=config.beta1)


def _learns_faster(params: Any) -> Any:
    """Marks the arrays that LoRA+ gives a higher rate (https://arxiv.org/abs/2402.12354).

    B and, as in PEFT's `create_loraplus_optimizer`, what has one axis in a layer: DoRA's lengths.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("b", "m"), params)


def decayed(params: Any) -> Any:
    """Marks the matrices of a parameter tree: kernels, embeddings and adapters."""

    # By name and not by rank: stacked over layers, a norm's scale is [L, D], as a matrix is.
    def is_matrix(path: Any, _: Any) -> bool:
        return path[-1].key in ("kernel", "weight", "a", "b")

    return jax.tree_util.tree_map_with_path(is_matrix, params)

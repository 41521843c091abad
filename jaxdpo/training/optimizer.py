"""AdamW with warm-up, a schedule, clipping and a weight-decay mask."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import BaseModel, ConfigDict, Field

# Defaults of the learning rate: TRL's for full fine-tuning, ten times that for adapters, whose best
# rate is about ten times higher (Schulman et al. 2025, "LoRA Without Regret").
_FULL_LEARNING_RATE, _LORA_LEARNING_RATE = 1e-6, 1e-5


class OptimizerConfig(BaseModel):
    """AdamW and its schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float | None = Field(
        default=None, gt=0, description="peak learning rate; default: 1e-6, with LoRA 1e-5"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="linear", description="how the learning rate falls to 0 after the warm-up"
    )
    warmup_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the steps in which the learning rate rises from 0",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the mean of squared gradients"
    )
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the mean square")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="decoupled weight decay, of matrices only (no norms, no biases)",
    )
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="gradients are scaled down to this global norm; null: never"
    )
    loraplus_lr_ratio: float | None = Field(
        default=None,
        gt=0,
        description="LoRA+: B, which begins at zero, learns this many times faster than A; null: "
        "as fast",
    )
    mean_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype that the mean of gradients is kept in; that of their squares is float32",
    )

    def peak(self, lora: bool) -> float:
        """Returns the configured learning rate, or the default for what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _LORA_LEARNING_RATE if lora else _FULL_LEARNING_RATE


@dataclass(frozen=True)
class Optimizer:
    """AdamW over the steps of a run, as static values.

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
        """Returns clipping and AdamW at the schedule's rate."""
        return make_optimizer(self.config, self.schedule())


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
    """Returns clipping by global norm, then AdamW (Loshchilov & Hutter 2019, algorithm 2)."""
    clip = (
        optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm)
    )
    # Clipped before the moments see it: one exploding gradient would stay in the mean of squares
    # for a thousand steps.
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
        mu_dtype=jnp.dtype(config.mean_dtype),
    )
    if config.loraplus_lr_ratio is None:
        return optax.chain(clip, adamw)
    # Last, so that it is a factor on the rate: AdamW's own division by the gradients' size would
    # take a factor on them out again.
    faster = optax.masked(optax.scale(config.loraplus_lr_ratio), _learns_faster)
    return optax.chain(clip, adamw, faster)


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

"""Decisions that a configuration leaves to the machine: rows, attention, dtype and remat."""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.data.packing.plan import (
    BatchShape,
    Packer,
    TrainPlan,
    choose_row_length,
    longest_sequence,
    make_train_plan,
    scoring_shape,
)
from jaxdpo.devices.machine import Machine
from jaxdpo.devices.sharding import batch_shards
from jaxdpo.errors import UserError
from jaxdpo.model.attention.cudnn import cudnn_refuses
from jaxdpo.model.attention.dense import LAYOUTS, AttentionKind
from jaxdpo.model.attention.pallas import pallas_refuses
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.runs.memory import step_memory

# How full a device may be by the estimate of `jaxdpo.runs.memory`, which knows nothing of what the
# compiler adds.
_FULL = 0.85
# From least to most rematerialised.
Remat = Literal["none", "dots", "full"]
_REMATS: tuple[Remat, ...] = ("none", "dots", "full")


@dataclass(frozen=True)
class Resolved:
    """A run's plan, shapes and arithmetic.

    Attributes:
      compute: Dtype, attention, remat and adapters.
      plan: Which pairs form which step.
      shape: Of the steps' microbatches.
      scoring: A shape that holds every microbatch of a scoring pass.
    """

    compute: Compute
    plan: TrainPlan
    shape: BatchShape
    scoring: BatchShape

    def describe(self) -> str:
        """Steps, microbatches and arithmetic in a line."""
        plan, shape, compute = self.plan, self.shape, self.compute
        return (
            f"{plan.num_steps} steps of {plan.packer.config.size} pairs, in microbatches of "
            f"{shape.rows} × {shape.row_length} tokens (up to {shape.microbatches} a step), "
            f"{compute.attention} attention, {compute.dtype.name}, remat {compute.remat}"
        )


def resolve(
    config: RunConfig,
    model: ModelConfig,
    lengths: np.ndarray,
    test_lengths: np.ndarray,
    mesh: Mesh,
    machine: Machine,
) -> Resolved:
    """Plans a run for a machine; under the mesh that is given.

    Args:
      config: The run.
      model: Architecture.
      lengths: i32 `[N, 3]`, tokens of the TRAIN pairs.
      test_lengths: Those of the TEST pairs, perhaps none.
      mesh: The mesh.
      machine: What its devices are.

    Raises:
      UserError: For what the machine cannot do, and pairs that do not fit.
    """
    # Rows must hold the longest pair of either split.
    both = np.concatenate([lengths, test_lengths])
    rows = config.batch.rows_per_device * batch_shards()
    row_length = choose_row_length(both, config.batch, rows)
    packer = Packer(lengths, config.batch, rows, row_length, longest_sequence(both))
    training = config.training
    plan = make_train_plan(packer, training.seed, training.epochs, training.max_steps)
    # CPUs emulate bfloat16; accelerators multiply it at twice to sixteen times the rate of float32.
    default = "float32" if machine.platform == "cpu" else "bfloat16"
    dtype = jnp.dtype(config.model.compute_dtype or default)
    kind = _attention(config, model, dtype.name, machine)
    shape = plan.shape(LAYOUTS[kind])
    # One shape for both splits, so that their scoring shares a compile.
    packers = [replace(packer, lengths=each) for each in (lengths, test_lengths) if len(each)]
    scoring = scoring_shape(packers, LAYOUTS[kind])
    noise = training.neftune_alpha or 0.0
    compute = Compute(
        dtype,
        kind,
        "full",
        config.lora,
        deterministic=training.deterministic,
        neftune_alpha=noise,
    )
    remat = config.model.remat
    if remat == "auto":
        remat = _least_remat(config, model, compute, shape, mesh, machine)
    return Resolved(replace(compute, remat=remat), plan, shape, scoring)


def _attention(
    config: RunConfig, model: ModelConfig, dtype: str, machine: Machine
) -> AttentionKind:
    kind = config.model.attention
    if kind == "auto":
        return "splash" if machine.platform == "tpu" else "tiles"
    wanted = {"splash": "tpu", "cudnn": "gpu", "pallas": "gpu"}.get(kind, machine.platform)
    if wanted != machine.platform:
        raise UserError(
            f"model.attention={kind} runs on a {wanted}, and this is a {machine.platform}; leave "
            "it out"
        )
    reason = None
    if kind == "cudnn":
        reason = cudnn_refuses(model, dtype, machine.capability)
    elif kind == "pallas":
        reason = pallas_refuses(model, dtype, machine.capability)
    if reason is not None:
        raise UserError(f"model.attention={kind}: {reason}; leave it out")
    return kind


def _least_remat(
    config: RunConfig,
    model: ModelConfig,
    compute: Compute,
    shape: BatchShape,
    mesh: Mesh,
    machine: Machine,
) -> Remat:
    """Chooses the policy that rematerialises least, of those that the devices have memory for."""
    # On a CPU reading back what was kept takes as long as computing it again.
    if machine.platform == "cpu":
        return "full"
    for remat in _REMATS[:-1]:
        memory = step_memory(config, model, replace(compute, remat=remat), shape, mesh)
        if memory.total <= _FULL * machine.memory:
            return remat
    return _REMATS[-1]

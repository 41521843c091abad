"""The real training step, compiled for machines that need not be there."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.devices.sharding import replicated, row_sharding
from jaxdpo.errors import UserError
from jaxdpo.model.config import ModelConfig
from jaxdpo.runs.columns import blank_columns
from jaxdpo.runs.execution import Resolved
from jaxdpo.runs.memory import abstract_rows, abstract_run
from jaxdpo.runs.objective import objective_of, optimizer_of
from jaxdpo.training.step import make_train_step

# A quarter of the compile time, and a peak that was up to 7% lower in trials.
_FAST = {"exec_time_optimization_effort": -1.0}
# XLA's words where CUDA's own tools are missing: its assembler, its library of functions.
_NO_TOOLKIT = ("PTX compilation provider", "libdevice")
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclass(frozen=True)
class Compiled:
    """The compiler's figures of a step, in bytes of one device.

    Attributes:
      peak: Most that is held at once; where the step does not fit, what it would need.
      together: Arguments, results and temporaries, as if none shared memory; None where the step
        does not fit, because then the compiler does not say.
      fits: Whether the compiler accepted it.
      collectives: Kind ↦ how often it stands in the compiled text; those in loops count once.
      program: The executable; None where the step does not fit.
    """

    peak: float
    together: float | None
    fits: bool
    collectives: dict[str, int]
    program: Any = None


def compile_step(
    config: RunConfig, model: ModelConfig, resolved: Resolved, mesh: Mesh, platform: str
) -> Compiled:
    """Compiles the step that `jaxdpo.train` would run, for the mesh's devices.

    Args:
      config: The run.
      model: Architecture.
      resolved: How it is computed.
      mesh: Devices of any machine; must be set as the current mesh.
      platform: "cpu", "gpu" or "tpu", theirs.
    """
    state, frozen = abstract_run(config, model, mesh)
    objective = objective_of(config, model, resolved.compute)
    optimizer = optimizer_of(config, resolved.plan.num_steps)
    step = make_train_step([objective], [optimizer], mesh, state)
    batch, columns = abstract_inputs(config, resolved, mesh)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    try:
        traced = step.trace(state, frozen, batch, columns, count)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            f"model.attention=cudnn: {error}; pip install --no-deps nvidia-cudnn-cu13"
        ) from error
    # JAX calls the platform of GPUs "gpu", and lowers for "cuda" or "rocm".
    names = {"gpu": "cuda"}
    lowered = traced.lower(lowering_platforms=(names.get(platform, platform),))
    try:
        program = lowered.compile(compiler_options=_FAST if platform == "tpu" else None)
    except jax.errors.JaxRuntimeError as error:
        if any(said in str(error) for said in _NO_TOOLKIT):
            raise UserError(
                "the compiler for GPUs found no ptxas or no libdevice of CUDA here; pip install "
                "'jaxdpo[plan-gpu]' brings both (nvidia-cuda-nvcc), and needs no GPU"
            ) from error
        # A TPU's compiler refuses what does not fit, and its message alone says by how much.
        needed = re.search(r"\(([\d.]+)G\) exceeds available HBM", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or needed is None:
            raise
        return Compiled(float(needed[1]) * 2**30, None, False, {})
    memory = program.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    # Donated arguments become results in place: their bytes are counted once.
    together = arguments + outputs - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    text = program.as_text() or ""
    # XLA's compiler for CPUs gives no peak that includes temporaries.
    peak = together if platform == "cpu" else memory.peak_memory_in_bytes
    return Compiled(peak, together, True, collectives_in(text), program)


def abstract_inputs(config: RunConfig, resolved: Resolved, mesh: Mesh) -> tuple[Any, Any]:
    """Returns shapes of a step's batch and columns, `[M, R, ...]`, placed on the mesh.

    Args:
      config: The run.
      resolved: How it is computed, with the shape of its microbatches.
      mesh: The mesh; of compile-only devices too.
    """
    shape = resolved.shape
    placed = row_sharding(mesh, row_axis=1)

    # The step takes all microbatches at once, stacked in front of the rows.
    def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape.microbatches, *leaf.shape), leaf.dtype, sharding=placed)

    columns = blank_columns(config, 1).at(np.zeros((shape.rows, shape.pairs), np.int32))
    return jax.tree.map(stacked, abstract_rows(shape)), jax.tree.map(stacked, columns)


def collectives_in(text: str) -> dict[str, int]:
    """Counts the collectives of each kind in a compiled program; asynchronous ones once."""
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    return dict(Counter(found))

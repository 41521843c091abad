"""The memory of a training step on one device, from shapes alone: nothing is compiled or run.

State is exact: its shards' bytes. What the forward pass keeps for the backward pass is read off
their trace, so it is what the remat policy says, and what the compiler then allocates.
"""

import functools
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import empty_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.devices.sharding import BATCH_AXES, HOST, on_host, shardings_for
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.model.quantized import is_quantized, quantize_layers
from jaxdpo.runs.objective import objective_of, optimizer_of
from jaxdpo.scoring.logprobs import CHUNK_LOGITS
from jaxdpo.scoring.score import score_completions
from jaxdpo.training.state import TrainState, begin


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device during an optimizer step, by part.

    Attributes:
      parameters: What is trained: the parameters in fp32, and rounded where they are computed in
        another dtype; or under LoRA the adapters.
      frozen: LoRA's base, and the reference's parameters.
      optimizer: The optimizer's state, and an average of what trains, if one is kept.
      gradients: fp32, summed over microbatches.
      activations: What the backward pass reads of a microbatch's forward pass.
      workspace: A layer that is computed again, and the vocabulary head.
    """

    parameters: int
    frozen: int
    optimizer: int
    gradients: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def abstract_run(config: RunConfig, model: ModelConfig, mesh: Mesh) -> tuple[TrainState, Any]:
    """Returns shapes, dtypes and shardings of a run's state before step 0, and of what is frozen.

    Args:
      config: The run.
      model: Architecture.
      mesh: The mesh; of compile-only devices too.
    """
    # Of how the model is computed, the state depends on the adapters alone.
    compute = Compute(jnp.dtype("float32"), "dense", "full", config.lora)
    objective, optimizer = objective_of(config, model, compute), optimizer_of(config, num_steps=1)
    params = _placed(_abstract_base(model, jnp.dtype(config.model.param_dtype), config.lora), mesh)
    state, frozen = jax.eval_shape(lambda given: begin(objective, optimizer, given, mesh), params)
    # `eval_shape` forgets where arrays lie; the table of shardings says it again.
    frozen = _placed(frozen, mesh)
    if objective.offloaded:
        where = on_host(frozen, mesh)
        frozen = jax.tree.map(lambda leaf, at: leaf.update(sharding=at), frozen, where)
    return _placed(state, mesh), frozen


def _placed(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings_for(tree, mesh),
    )


def _abstract_base(model: ModelConfig, dtype: Any, lora: LoraConfig | None) -> Any:
    """Shapes of the parameters, the layers' in codes where the adapters' base is."""
    params = abstract_params(model, dtype)
    if lora is None:
        return params
    return jax.eval_shape(lambda tree: quantize_layers(tree, lora.base), params)


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of arrays with shardings, or of their shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )


def kept_bytes(
    model: ModelConfig, params: Any, compute: Compute, shape: BatchShape, mesh: Mesh
) -> int:
    """Bytes that a device keeps of a microbatch's forward pass for its backward pass.

    Rows are cut over the mesh, copies of parameters as those are, and along "tensor" what has not
    the residual stream's channels.

    Args:
      model: Architecture.
      params: Shapes of the parameters, with shardings.
      compute: How it is computed.
      shape: Of the microbatch.
      mesh: The mesh.
    """
    sizes = dict(mesh.shape)
    rows = max(1, shape.rows // math.prod(sizes[axis] for axis in BATCH_AXES))
    whole = jax.tree.leaves(params)
    dtype = params["embed"]["weight"].dtype
    kept = _kept_shapes(model, dtype, compute, replace(shape, rows=rows))
    shards = {leaf.shape: leaf.sharding.shard_shape(leaf.shape) for leaf in whole}

    def size(kept_shape: tuple[int, ...], width: int) -> int:
        total = math.prod(shards.get(kept_shape, kept_shape)) * width
        cut = kept_shape not in shards and kept_shape and kept_shape[-1] != model.hidden_size
        return total // sizes["tensor"] if cut else total

    return sum(size(*one) for one in kept)


@functools.lru_cache(maxsize=64)
def _kept_shapes(
    model: ModelConfig, param_dtype: Any, compute: Compute, shape: BatchShape
) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Shapes and bytes an element of what one device's rows keep, with whole parameters."""
    params = _abstract_base(model, param_dtype, compute.lora)
    adapters, lora = None, compute.lora
    if lora is not None:
        adapters = jax.eval_shape(lambda: init_lora(model, lora, jax.random.key(0)))

    def backward(params: Any, adapters: Any, batch: PackedBatch) -> Any:
        def score(trainable: Any) -> jax.Array:
            both = (trainable, None) if adapters is None else (params, trainable)
            return score_completions(model, *both, batch, compute).completions.logps

        return jax.vjp(score, params if adapters is None else adapters)[1]

    with jax.sharding.use_abstract_mesh(_NO_MESH):
        jaxpr = jax.make_jaxpr(backward)(params, adapters, abstract_rows(shape)).jaxpr
    # The backward pass's residuals are the trace's outputs; inputs among them are held anyway.
    given = {id(variable) for variable in jaxpr.invars}
    kept = {id(v): v.aval for v in jaxpr.outvars if id(v) not in given}
    return tuple((aval.shape, aval.dtype.itemsize) for aval in kept.values())


_NO_MESH = jax.sharding.AbstractMesh((), ())


def abstract_rows(shape: BatchShape) -> PackedBatch:
    """Shapes of one microbatch's arrays."""
    one = empty_batch(replace(shape, rows=1), 1)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((shape.rows, *leaf.shape[1:]), leaf.dtype), one
    )


def step_memory(
    config: RunConfig, model: ModelConfig, compute: Compute, shape: BatchShape, mesh: Mesh
) -> StepMemory:
    """Estimates what a training step will hold.

    Args:
      config: The run.
      model: Architecture.
      compute: How it is computed, with the remat policy in question.
      shape: Of the microbatches.
      mesh: The mesh; of compile-only devices too.
    """
    state, frozen = abstract_run(config, model, mesh)
    # Elements on one device: gradients are sharded as what trains.
    trained = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(state.trainable)
    )
    # What the forward pass reads: LoRA's base, or all parameters rounded to their dtype.
    dtype = jnp.dtype(config.model.param_dtype)
    params = _placed(_abstract_base(model, dtype, None), mesh) if config.lora is None else frozen
    copied = config.lora is None and dtype != jnp.float32
    kept = kept_bytes(model, params, compute, shape, mesh)
    rows = shape.rows // math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    # Held for a moment at a time, and so counted once: the head's chunk, and one layer.
    workspace = _head_bytes(model, compute, rows * shape.scores, mesh)
    if compute.remat != "none":
        everything = kept_bytes(model, params, replace(compute, remat="none"), shape, mesh)
        # The backward pass rematerialises one layer, and then holds all of its activations.
        workspace += (everything - kept) // model.num_layers
    workspace += _numbers_bytes(params, compute) // mesh.shape["tensor"]
    return StepMemory(
        parameters=device_bytes(state.trainable) + (device_bytes(params) if copied else 0),
        frozen=device_bytes(frozen) + device_bytes(state.reference),
        optimizer=device_bytes((state.optimizer, state.average)),
        # Of several microbatches, the sum so far and the one under way.
        gradients=4 * trained * (2 if shape.microbatches > 1 else 1),
        activations=kept,
        workspace=workspace,
    )


def _numbers_bytes(params: Any, compute: Compute) -> int:
    """Counts the largest kernel of a layer, where one is formed to be multiplied or measured."""
    leaves = jax.tree.leaves(params["layers"], is_leaf=is_quantized)
    kernels = [leaf.size // leaf.shape[0] for leaf in leaves if is_quantized(leaf)]
    formed = max(kernels, default=0) * compute.dtype.itemsize
    if compute.lora is not None and compute.lora.use_dora:
        # DoRA takes the lengths of the columns of W + s A B, whose second term is formed in fp32.
        matrices = [leaf.size // leaf.shape[0] for leaf in leaves if len(leaf.shape) == 3]
        formed += 4 * max(matrices)
    return formed


def _head_bytes(model: ModelConfig, compute: Compute, scores: int, mesh: Mesh) -> int:
    """Counts the head gathered, its gradient in fp32 where it trains, and one chunk's logits."""
    head = model.vocab_size * model.hidden_size
    gradient = 4 if compute.lora is None else 0
    # Logits, their exponentials, and the gradient.
    most = CHUNK_LOGITS[mesh.devices.flat[0].platform]
    chunk = 3 * 4 * min(most, scores * model.vocab_size)
    return (head * (compute.dtype.itemsize + gradient) + chunk) // mesh.shape["tensor"]

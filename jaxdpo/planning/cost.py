"""Computes the work and the traffic of a step by formula."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.data.packing.batch import TILE
from jaxdpo.devices.sharding import BATCH_AXES, path_name, spec_for
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import abstract_params
from jaxdpo.runs.execution import Resolved

# Optimizer steps whose packing is looked at.
_SAMPLED_STEPS = 8


@dataclass(frozen=True)
class StepCost:
    """One optimizer step, over all devices but for `sent`.

    Attributes:
      useful: FLOPs of the least that the update takes: no padding, nothing computed twice.
      done: FLOPs with padding, remat and the reference where the step computes it.
      forward: FLOPs of one forward pass alone, with padding.
      sent: Bytes that each device sends.
      packing: Share of the rows' places that hold tokens.
    """

    useful: float
    done: float
    forward: float
    sent: float
    packing: float


def step_cost(config: RunConfig, model: ModelConfig, resolved: Resolved, mesh: Mesh) -> StepCost:
    """Returns the cost of a run's mean step.

    Args:
      config: The run.
      model: Architecture.
      resolved: How it is computed.
      mesh: The mesh.
    """
    plan, shape = resolved.plan, resolved.shape
    steps = range(min(_SAMPLED_STEPS, plan.num_steps))
    microbatches = sum(len(plan.microbatches(step)) for step in steps) / len(steps)
    pairs = np.concatenate([plan.pairs(step) for step in steps])
    lengths = plan.packer.lengths[pairs].astype(np.float64)
    prompt, completions = lengths[:, 0], lengths[:, 1:].sum(1)
    tokens, scored = lengths.sum() / len(steps), completions.sum() / len(steps)
    # Each part sees itself, causally; each completion sees the prompt too.
    area = (np.square(lengths).sum() / 2 + prompt @ completions) / len(steps)
    slots = microbatches * shape.rows * shape.row_length
    # A weight is multiplied and added once for each token: two FLOPs, and as many for the
    # gradient by the activations and for that by the weight, hence the passes below.
    kernels, head = _weights(model)
    attention = model.attention
    # For each query and key two products over the head's channels: scores, and weighted values.
    per_area = 4.0 * model.num_layers * attention.num_heads * attention.head_dim
    full = config.lora is None
    # A forward pass, its gradient by the activations, and by the weights where they are trained.
    passes = 6 if full else 4
    # Attention has no weights. Backwards it takes five products of the size of its two, of which
    # one, the scores, is computed again whatever the policy: 2 + 5 products are 3.5 times 2.
    useful = passes * (kernels * tokens + head * scored) + 3.5 * per_area * area
    again = {"none": 0.0, "dots": 0.0, "full": 1.0}[resolved.compute.remat]
    online = float(config.reference_kind not in ("none", "precomputed"))
    forwards = again + online
    apart = np.square(lengths[:, :1] + lengths[:, 1:]).sum() / 2 / len(steps)
    laid_out = per_area * _areas(resolved, microbatches, apart)
    all_scored = microbatches * shape.rows * shape.scores
    forward = 2 * (kernels * slots + head * all_scored) + laid_out
    # The head is always computed again.
    done = passes * (kernels * slots + head * all_scored) + 3.5 * laid_out
    done += 2 * head * all_scored + forwards * forward
    sent = microbatches * traffic(config, model, resolved, mesh).sent
    return StepCost(useful, done, forward, sent, tokens / slots)


def _areas(resolved: Resolved, microbatches: float, sequences: float) -> float:
    """Scores that attention computes a step, of one head of one layer.

    `sequences` are those of all sequences apart, each causal.
    """
    shape = resolved.shape
    if resolved.compute.attention == "dense":
        return microbatches * shape.rows * shape.row_length**2
    if resolved.compute.attention in ("tiles", "pallas"):
        return microbatches * shape.rows * shape.tiles * TILE**2
    if resolved.compute.attention == "cudnn":
        # Each sequence by its own length.
        return sequences
    # The kernel leaves out what no query of a block may see.
    return microbatches * shape.rows * shape.sequences * shape.sequence_width**2 / 2


@functools.lru_cache(maxsize=4)
def _shapes(model: ModelConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns the name and shape of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(model, jnp.float32))
    return tuple((path_name(path), leaf.shape) for path, leaf in leaves)


def _weights(model: ModelConfig) -> tuple[float, float]:
    """Weights that a token is multiplied with: of all layers, and of the vocabulary head."""
    experts, total = model.mlp.experts, 0.0
    for name, shape in _shapes(model):
        if name.startswith("layers/") and name.endswith("kernel"):
            share = 1.0
            if experts is not None and "experts/" in name:
                share = experts.per_token / experts.num_experts
            total += share * math.prod(shape)
    return total, float(model.vocab_size * model.hidden_size)


@dataclass(frozen=True)
class Traffic:
    """The results of a microbatch's collectives, in bytes on a device.

    Attributes:
      gathered: Parameters that are cut along "fsdp": of layers for the passes forwards and
        backwards, of the embedding and the vocabulary head once each.
      gradients: Gradients, summed over the batch axes that their parameters are not cut along.
      hidden: Along "tensor", the outputs of embedding, attention and MLP, attention's once more
        where it is computed again, and the gradients of what q, k, v, gate, up and the head read.
      sent: What a device sends for all that, in rings.
    """

    gathered: float
    gradients: float
    hidden: float
    sent: float


def traffic(config: RunConfig, model: ModelConfig, resolved: Resolved, mesh: Mesh) -> Traffic:
    """Computes the traffic of a microbatch from the table of shardings.

    Args:
      config: The run.
      model: Architecture.
      resolved: How it is computed.
      mesh: The mesh.
    """
    sizes, compute = dict(mesh.shape), resolved.compute
    gathered = gradients = sent = 0.0
    for name, shape in _shapes(model):
        axes = _axes(spec_for(name, shape, sizes))
        # What is left of a parameter on a device once its pieces along "fsdp" are gathered.
        held = math.prod(shape) / math.prod(sizes[axis] for axis in axes - {"fsdp"})
        if "fsdp" in axes and sizes["fsdp"] > 1:
            # A layer is gathered forwards and backwards, and not kept between: that is what saves
            # memory. A tied embedding is gathered as the head, too.
            times = 2 if name.startswith("layers/") else 1
            times += model.tied_head and name.startswith("embed")
            gathered += times * held * compute.dtype.itemsize
        if config.lora is None:
            pieces = sizes["fsdp"] if "fsdp" in axes else 1
            copies = math.prod(sizes[axis] for axis in BATCH_AXES if axis not in axes)
            gradients += 4 * held * (pieces * copies > 1)
            # Scattered over the pieces, then summed over the copies of each.
            sent += 4 * held * ((pieces - 1) / pieces + 2 * (copies - 1) / copies / pieces)
    shards = math.prod(sizes[axis] for axis in BATCH_AXES)
    sums = model.num_layers * (2 + (compute.remat == "full") + 3 + (2 if model.mlp.gated else 1))
    # Of the head's input only the states that are scored have a gradient.
    states = (sums + 1) * resolved.shape.row_length + resolved.shape.scores
    hidden = resolved.shape.rows / shards * states * model.hidden_size * compute.dtype.itemsize
    hidden *= sizes["tensor"] > 1
    sent += gathered * (sizes["fsdp"] - 1) / sizes["fsdp"]
    sent += hidden * 2 * (sizes["tensor"] - 1) / sizes["tensor"]
    return Traffic(gathered, gradients, hidden, sent)


def _axes(spec: Any) -> set[str]:
    return {axis for axis in spec if axis is not None}

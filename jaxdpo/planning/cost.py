"""What a step computes and sends, by formula, and between what times it will take."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import abstract_params
from jaxdpo.resolve import Resolved
from jaxdpo.sharding import BATCH_AXES, path_name, spec_for

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
    """The mean step of a run."""
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
    kernels, head = _weights(model)
    attention = model.attention
    per_area = 4.0 * model.num_layers * attention.num_heads * attention.head_dim
    full = config.lora is None
    # A forward pass, its gradient by the activations, and by the weights where they are trained.
    passes = 6 if full else 4
    useful = passes * (kernels * tokens + head * scored) + 3.5 * per_area * area
    again = {"none": 0.0, "dots": 0.0, "full": 1.0}[resolved.compute.remat]
    online = float(config.reference_kind not in ("none", "precomputed"))
    forwards = again + online
    laid_out = per_area * _areas(resolved, microbatches)
    all_scored = microbatches * shape.rows * shape.scores
    forward = 2 * (kernels * slots + head * all_scored) + laid_out
    # The head is always computed again.
    done = passes * (kernels * slots + head * all_scored) + 3.5 * laid_out
    done += 2 * head * all_scored + forwards * forward
    sent = _sent(config, model, resolved, mesh, microbatches)
    return StepCost(useful, done, forward, sent, tokens / slots)


def _areas(resolved: Resolved, microbatches: float) -> float:
    """Scores that attention computes a step, of one head of one layer."""
    shape = resolved.shape
    if resolved.compute.attention == "dense":
        return microbatches * shape.rows * shape.row_length**2
    whole = microbatches * shape.rows * shape.sequences * shape.sequence_width**2
    # Kernels leave out what no query of a block may see.
    return whole if resolved.compute.attention == "gather" else whole / 2


@functools.lru_cache(maxsize=4)
def _shapes(model: ModelConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(model, jnp.float32))
    return tuple((path_name(path), leaf.shape) for path, leaf in leaves)


def _weights(model: ModelConfig) -> tuple[float, float]:
    """Weights that a token is multiplied with: of all layers, and of the vocabulary head."""
    experts, total = model.mlp.experts, 0.0
    architecture: Any = model  # (Pyright does not know that it is hashable.)
    for name, shape in _shapes(architecture):
        if name.startswith("layers/") and name.endswith("kernel"):
            share = 1.0
            if experts is not None and "experts/" in name:
                share = experts.per_token / experts.num_experts
            total += share * math.prod(shape)
    return total, float(model.vocab_size * model.hidden_size)


def _sent(
    config: RunConfig, model: ModelConfig, resolved: Resolved, mesh: Mesh, microbatches: float
) -> float:
    """Bytes that each device sends in a step.

    Parameters that are cut along "fsdp" are gathered twice a microbatch, for the passes forwards
    and backwards; gradients are summed over the batch axes once a microbatch, in fp32 pieces; along
    "tensor" each layer sums its two outputs, and going backwards the gradients of its two inputs.
    """
    sizes = dict(mesh.shape)
    width = resolved.compute.dtype.itemsize
    gathered = summed = 0.0
    architecture: Any = model
    for name, shape in _shapes(architecture):
        spec = spec_for(name, shape, sizes)
        cut = math.prod(sizes[axis] for axis in _axes(spec) if axis != "fsdp")
        held = math.prod(shape) / cut
        if "fsdp" in _axes(spec):
            gathered += held * (sizes["fsdp"] - 1) / sizes["fsdp"]
        if config.lora is None:
            summed += _sum_bytes(held, spec, sizes)
    rows = math.prod(sizes[axis] for axis in BATCH_AXES)
    hidden = resolved.shape.rows / rows * resolved.shape.row_length * model.hidden_size * width
    tensor = sizes["tensor"]
    passes = 4 + 2 * (resolved.compute.remat == "full")
    along_tensor = passes * model.num_layers * hidden * 2 * (tensor - 1) / tensor
    return microbatches * (2 * gathered * width + 4 * summed + along_tensor)


def _sum_bytes(held: float, spec: Any, sizes: dict[str, int]) -> float:
    """Elements sent to sum a gradient over the batch axes that its parameter is not cut along."""
    scattered = sizes["fsdp"] if "fsdp" in _axes(spec) else 1
    copies = math.prod(sizes[axis] for axis in BATCH_AXES if axis not in _axes(spec))
    pieces = held / scattered
    return held * (scattered - 1) / scattered + 2 * pieces * (copies - 1) / copies


def _axes(spec: Any) -> set[str]:
    return {
        axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)
    }

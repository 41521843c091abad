"""Suggests the mesh, microbatch and remat policy that make a run fastest, by formula."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.data.packing.plan import choose_row_length
from jaxdpo.devices.sharding import MeshConfig, make_mesh
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.chips import Target
from jaxdpo.planning.cost import step_cost
from jaxdpo.runs.execution import Remat, Resolved, resolve
from jaxdpo.runs.memory import step_memory

# How full a device may be by estimate: the compiler's own buffers come on top.
_FULL = 0.85
# Choices whose memory is compared.
_LOOKED_AT = 6
_ROWS = (1, 2, 4, 8)
_REMATS: tuple[Remat, ...] = ("none", "dots", "full")


@dataclass(frozen=True)
class Choice:
    """A way to run, and what the formulas say of it.

    Attributes:
      config: The run's configuration, with it.
      resolved: What that means.
      mesh: Its mesh.
      seconds: Of a step, least and most.
    """

    config: RunConfig
    resolved: Resolved
    mesh: Mesh
    seconds: tuple[float, float]

    def memory(self, model: ModelConfig) -> int:
        """Returns the bytes that a step holds on a device, by estimate."""
        resolved = self.resolved
        return step_memory(self.config, model, resolved.compute, resolved.shape, self.mesh).total

    def overrides(self) -> str:
        """Returns the overrides of a command line that choose it."""
        mesh, batch = self.config.mesh, self.config.batch
        axes = [f"mesh.{axis}={getattr(mesh, axis)}" for axis in ("data", "fsdp", "tensor")]
        said = [f"batch.rows_per_device={batch.rows_per_device}"]
        said += [f"batch.row_length={batch.row_length}", f"model.remat={self.config.model.remat}"]
        return " ".join(axes + said)


def suggest(
    config: RunConfig,
    model: ModelConfig,
    lengths: np.ndarray,
    test_lengths: np.ndarray,
    target: Target,
) -> list[Choice]:
    """Finds the fastest ways to run that should fit the machine, the one that holds least first.

    Args:
      config: The run; everything but mesh, rows and remat stays.
      model: Architecture.
      lengths: i32 `[N, 3]`, tokens of the TRAIN pairs.
      test_lengths: Those of the TEST pairs.
      target: The machine.
    """
    rows = len(target.devices)
    both = np.concatenate([lengths, test_lengths])
    row_length = choose_row_length(both, config.batch, rows)
    choices = []
    for axes in _meshes(model, len(target.devices)):
        mesh = make_mesh(axes, target.devices)
        for rows in _ROWS:
            base = _with(config, axes, rows, row_length)
            with jax.set_mesh(mesh):
                resolved = resolve(base, model, lengths, test_lengths, mesh, target.machine)
            choices += [_timed(base, model, resolved, mesh, target, remat) for remat in _REMATS]
            # A step that fits one microbatch gains nothing by more rows.
            if resolved.shape.microbatches == 1:
                break
    # Memory is estimated for the fastest alone: tracing a step for each choice takes seconds.
    choices.sort(key=lambda choice: choice.seconds[1])
    limit = _FULL * target.machine.memory
    fitting = (choice for choice in choices if choice.memory(model) <= limit)
    fastest = list(itertools.islice(fitting, _LOOKED_AT))
    # Of those that are as fast, the one that holds least.
    as_fast = [one for one in fastest if one.seconds[1] <= 1.02 * fastest[0].seconds[1]]
    return sorted(as_fast, key=lambda choice: choice.memory(model))


def _meshes(model: ModelConfig, devices: int) -> Iterator[MeshConfig]:
    """Parameters cut over all devices or some; along "tensor" whole heads."""
    # Along "tensor" a layer's activations are summed twice, which only the links of one host bear.
    for tensor in (1, 2, 4, 8):
        if devices % tensor or model.attention.num_kv_heads % tensor:
            return
        rest = devices // tensor
        for copies in (1, 2, 4, 8, 16, 32):
            if rest % copies == 0:
                yield MeshConfig(data=copies, fsdp=rest // copies, tensor=tensor)


def _with(config: RunConfig, axes: MeshConfig, rows: int, row_length: int) -> RunConfig:
    batch = {"rows_per_device": rows, "row_length": row_length}
    return config.model_copy(
        update={
            "mesh": axes,
            "batch": config.batch.model_copy(update=batch),
            "model": config.model.model_copy(update={"remat": "full"}),
        }
    )


def _timed(
    config: RunConfig,
    model: ModelConfig,
    resolved: Resolved,
    mesh: Mesh,
    target: Target,
    remat: Remat,
) -> Choice:
    chosen = config.model.model_copy(update={"remat": remat})
    resolved = replace(resolved, compute=replace(resolved.compute, remat=remat))
    cost = step_cost(config, model, resolved, mesh)
    return Choice(
        config.model_copy(update={"model": chosen}),
        resolved,
        mesh,
        target.seconds(cost.done, cost.sent),
    )

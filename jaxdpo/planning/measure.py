"""A few real steps on the machine at hand, of random weights and tokens: only their time counts."""

from typing import Any

import jax
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.aot import Compiled
from jaxdpo.planning.lengths import RandomPairs
from jaxdpo.runs.columns import blank_columns
from jaxdpo.runs.execution import Resolved
from jaxdpo.runs.memory import abstract_run
from jaxdpo.scoring.planned_pairs import PlannedPairs
from jaxdpo.training.loop import run_steps
from jaxdpo.training.metrics import LaggedMetrics
from jaxdpo.training.state import TrainState

# Timed steps; one before them is not, since the first touches memory for the first time.
_STEPS = 4
# Of the weights, as models are initialised.
_SPREAD = 0.02


def measure(
    config: RunConfig,
    model: ModelConfig,
    resolved: Resolved,
    mesh: Mesh,
    compiled: Compiled,
) -> list[float]:
    """Times a few steps, and returns the seconds of each, ascending.

    Args:
      config: The run.
      model: Architecture.
      resolved: How it is computed.
      mesh: This machine's.
      compiled: The step, compiled for it.
    """
    state, frozen = abstract_run(config, model, mesh)
    state = TrainState(
        _born(state.trainable, _SPREAD),
        _born(state.optimizer, 0.0),
        _born(state.step, 0.0),
        _born(state.reference, _SPREAD),
        _born(state.average, _SPREAD),
    )
    frozen = _born(frozen, _SPREAD)
    plan = resolved.plan
    pairs = RandomPairs(plan.packer.lengths, model.vocab_size)
    data = PlannedPairs(pairs, plan.packer, resolved.shape, blank_columns(config, len(pairs)))
    lagged, seconds = LaggedMetrics(), []
    for step, _, metrics in run_steps(compiled.program, state, frozen, data, plan, mesh, 0):
        ready = lagged.push(step, metrics)
        if ready is not None and "step_seconds" in ready[1]:
            seconds.append(ready[1]["step_seconds"])
        if len(seconds) == _STEPS:
            break
    ready = lagged.flush()
    if ready is not None and "step_seconds" in ready[1]:
        seconds.append(ready[1]["step_seconds"])
    return sorted(seconds[:_STEPS])


def _born(tree: Any, spread: float) -> Any:
    """Returns a tree of normal numbers, each array made on the devices that hold it."""
    leaves, structure = jax.tree.flatten(tree)

    def initial() -> list[jax.Array]:
        keys = jax.random.split(jax.random.key(0), len(leaves))
        return [
            (spread * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]

    if not leaves:
        return tree
    born = jax.jit(initial, out_shardings=[leaf.sharding for leaf in leaves])()
    return jax.tree.unflatten(structure, born)

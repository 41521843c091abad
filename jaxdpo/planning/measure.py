"""A few real steps on the machine at hand, of random weights and tokens: only their time counts."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.aot import Compiled
from jaxdpo.planning.lengths import RandomPairs
from jaxdpo.runs.execution import Resolved
from jaxdpo.runs.memory import abstract_run
from jaxdpo.training.loop import LaggedMetrics, TrainData, run_steps
from jaxdpo.training.step import TrainState

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
    )
    frozen = _born(frozen, _SPREAD)
    plan = resolved.plan
    pairs = RandomPairs(plan.packer.lengths, model.vocab_size)
    reference = None
    if config.reference_kind == "precomputed":
        reference = np.zeros((len(pairs), 2), np.float32)
    ones = np.ones(len(pairs), np.float32)
    data = TrainData(
        pairs,
        plan,
        resolved.shape,
        reference,
        None if config.data.weight_key is None else ones,
        None if config.data.margin_key is None else ones,
        ones if config.loss.labelled else None,
    )
    lagged, seconds = LaggedMetrics(), []
    for step, _, metrics in run_steps(compiled.program, state, frozen, data, mesh, 0):
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

"""Several runs trained at once: adapters stacked on a leading axis, one frozen base, one compile.

The runs see the same batches and differ in numbers alone, such as β or the learning rate. Each of
the base's matrix products is done once, for the activations of all runs side by side, so that its
weights are read once and not once a run; a run's own part are its adapters and their optimizer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.devices.sharding import replicated, shardings_for
from jaxdpo.training.objective import Objective
from jaxdpo.training.optimizer import Optimizer
from jaxdpo.training.state import TrainState

# Fields that runs trained at once may differ in: their values go through arithmetic alone, and
# nothing that is compiled depends on them.
LOSS_NUMBERS = ("beta", "gamma", "desirable_weight", "undesirable_weight")
OPTIMIZER_NUMBERS = ("learning_rate", "weight_decay")
NUMBERS = frozenset(
    [*(f"loss.{name}" for name in LOSS_NUMBERS), *(f"optimizer.{n}" for n in OPTIMIZER_NUMBERS)]
)

# Field ↦ f32 [K], of the losses and of the optimizers.
Numbers = tuple[dict[str, jax.Array], dict[str, jax.Array]]


def differing_numbers(objectives: Sequence[Objective], optimizers: Sequence[Optimizer]) -> Numbers:
    """Returns the numbers whose values are not the same in all runs; none of a single run."""
    losses = [objective.loss for objective in objectives]
    configs = [optimizer.config for optimizer in optimizers]
    return _differing(LOSS_NUMBERS, losses), _differing(OPTIMIZER_NUMBERS, configs)


def _differing(names: Sequence[str], configs: Sequence[Any]) -> dict[str, jax.Array]:
    values = {name: [getattr(config, name) for config in configs] for name in names}
    return {
        name: jnp.array(each, jnp.float32) for name, each in values.items() if len(set(each)) > 1
    }


def with_numbers(
    objective: Objective, optimizer: Optimizer, numbers: Numbers
) -> tuple[Objective, Optimizer]:
    """Puts one run's numbers in the places of those that all runs were compiled with.

    Args:
      objective: What the runs minimise.
      optimizer: Their update rule.
      numbers: One run's part of `differing_numbers`; traced.
    """
    # `model_copy` checks nothing, so that a traced number may stand for a float.
    loss = objective.loss.model_copy(update=numbers[0])
    config = optimizer.config.model_copy(update=numbers[1])
    return replace(objective, loss=loss), replace(optimizer, config=config)


def one_of(stacked: Any) -> Any:
    """Returns the shapes of one run's part of stacked arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)


def stack_states(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """Stacks the states of several runs on a new first axis, sharded as they are on the others."""

    def stack(*runs: TrainState) -> TrainState:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)

    # The table of shardings names trailing axes, so it serves stacked arrays as they are.
    shardings = shardings_for(jax.eval_shape(stack, *states), mesh)
    return jax.jit(stack, out_shardings=shardings)(*states)


class Unstack:
    """Takes single runs out of what several runs have computed together.

    Args:
      state: Their stacked state.
      mesh: The mesh.
    """

    def __init__(self, state: TrainState, mesh: Mesh):
        # The run's number is an argument, so that one compile serves all runs.
        self._state = jax.jit(_take, out_shardings=shardings_for(one_of(state), mesh))
        self._metrics = jax.jit(_take, out_shardings=replicated(mesh))

    def state(self, state: TrainState, run: int) -> TrainState:
        """Returns one run's state."""
        return self._state(state, run)

    def metrics(self, metrics: dict[str, Any], run: int) -> dict[str, Any]:
        """Returns one run's metrics."""
        return self._metrics(metrics, run)


def _take(tree: Any, run: jax.Array) -> Any:
    # What all runs have in common, such as the slots of a step, has no leading axis.
    return jax.tree.map(lambda leaf: leaf[run] if jnp.ndim(leaf) else leaf, tree)

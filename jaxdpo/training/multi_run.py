"""Several runs trained at once: adapters stacked on a leading axis, one frozen base, one compile.

The runs see the same batches and differ in numbers alone, such as β or the learning rate. Each of
the base's matrix products is done once, for the activations of all runs side by side, so that its
weights are read once and not once a run; a run's own part are its adapters and their optimizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.devices.sharding import replicated, shardings_for
from jaxdpo.model.decoder import Params
from jaxdpo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxdpo.training.step import (
    Objective,
    PairInputs,
    Rule,
    TrainState,
    make_train_step,
    take_step,
)

# Fields that runs trained at once may differ in: their values go through arithmetic alone, and
# nothing that is compiled depends on them.
LOSS_NUMBERS = ("beta", "gamma", "desirable_weight", "undesirable_weight")
OPTIMIZER_NUMBERS = ("learning_rate", "weight_decay")
NUMBERS = frozenset(
    [*(f"loss.{name}" for name in LOSS_NUMBERS), *(f"optimizer.{n}" for n in OPTIMIZER_NUMBERS)]
)


@dataclass(frozen=True)
class Group:
    """One run, or several at once.

    Attributes:
      state: The state before the next step; of several runs their arrays are stacked, `[K, ...]`.
      step: The jitted step, called as `make_train_step` says; of several, metrics are `[K]` too.
      take: `(tree, k)` ↦ the `k`-th run's part of a state or of its metrics.
    """

    state: TrainState
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    take: Callable[[Any, int], Any]


def make_group(
    objectives: Sequence[Objective],
    optimizers: Sequence[OptimizerConfig],
    states: Sequence[TrainState],
    num_steps: int,
    mesh: Mesh,
) -> Group:
    """Puts runs together.

    Args:
      objectives: What each minimises; alike but for the numbers of their losses.
      optimizers: How each is optimised; alike but for their numbers.
      states: Their states, after equally many steps.
      num_steps: Optimizer steps of a run.
      mesh: The mesh.
    """
    objective, optimizer = objectives[0], optimizers[0]
    lora = objective.compute.lora is not None
    if len(states) == 1:
        schedule = make_schedule(optimizer, num_steps, lora)
        update = make_optimizer(optimizer, schedule)
        step = make_train_step(objective, update, schedule, mesh, states[0])
        return Group(states[0], step, lambda tree, _: tree)
    shardings = shardings_for(states[0], mesh)
    loss_numbers = _differing(LOSS_NUMBERS, [one.loss for one in objectives])
    optimizer_numbers = _differing(OPTIMIZER_NUMBERS, optimizers)

    def one_run(
        numbers: tuple[dict[str, jax.Array], dict[str, jax.Array]], state: TrainState, *rest: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss = objective.loss.model_copy(update=numbers[0])
        config = optimizer.model_copy(update=numbers[1])
        schedule = make_schedule(config, num_steps, lora)
        update = make_optimizer(config, schedule)
        rule = Rule(replace(objective, loss=loss), update, schedule, shardings.trainable)
        return take_step(rule, state, *rest)

    stacked = jax.tree.map(lambda one: NamedSharding(mesh, P(None, *one.spec)), shardings)

    def train_step(
        state: TrainState,
        frozen: Params | None,
        batch: PackedBatch,
        inputs: PairInputs,
        num_microbatches: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        every = jax.vmap(one_run, in_axes=(0, 0, None, None, None, None))
        numbers = (loss_numbers, optimizer_numbers)
        return every(numbers, state, frozen, batch, inputs, num_microbatches)

    def take(tree: Any, k: jax.Array) -> Any:
        # What all runs have in common has no leading axis.
        return jax.tree.map(lambda leaf: leaf[k] if jnp.ndim(leaf) else leaf, tree)

    take_state = jax.jit(take, out_shardings=shardings)
    take_metrics = jax.jit(take, out_shardings=replicated(mesh))
    stack = jax.jit(
        lambda *runs: jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs), out_shardings=stacked
    )
    return Group(
        stack(*states),
        jax.jit(train_step, donate_argnums=0, out_shardings=(stacked, replicated(mesh))),
        lambda tree, k: (take_state if isinstance(tree, TrainState) else take_metrics)(tree, k),
    )


def _differing(names: Sequence[str], configs: Sequence[Any]) -> dict[str, jax.Array]:
    """The fields whose values are not the same in all configs, f32 `[K]` each."""
    values = {name: [getattr(config, name) for config in configs] for name in names}
    return {
        name: jnp.array(each, jnp.float32) for name, each in values.items() if len(set(each)) > 1
    }

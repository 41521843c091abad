"""The state that training changes, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.devices.sharding import on_host, shardings_for
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import init_lora
from jaxdpo.training.objective import Objective
from jaxdpo.training.optimizer import Optimizer


class TrainState(NamedTuple):
    """The state of a run, which is what a checkpoint holds.

    Attributes:
      trainable: The parameters in fp32, or with LoRA the adapters alone.
      optimizer: The optimizer's state.
      step: i32, optimizer steps done.
      reference: The parameters of a moving reference, or None.
      average: An average of what trains, which is evaluated and exported in its place, or None.
    """

    trainable: Params
    optimizer: Any
    step: jax.Array
    reference: Params | None = None
    average: Params | None = None

    @property
    def evaluated(self) -> Params:
        """The weights that are evaluated and exported: the average, or else what trains."""
        return self.trainable if self.average is None else self.average


def begin(
    objective: Objective,
    optimizer: Optimizer,
    params: Params,
    mesh: Mesh,
    keep: bool = False,
    adapters: Params | None = None,
) -> tuple[TrainState, Params | None]:
    """Makes a run's state before step 0, and what training leaves as it is.

    `jax.eval_shape` of this function is the memory plan, so that the plan and the run can't differ.

    Args:
      objective: What is minimised.
      optimizer: The update rule.
      params: The model's parameters, on the mesh.
      mesh: The mesh.
      keep: Whether the parameters are needed afterwards; otherwise they may become the state's,
        which training donates.
      adapters: LoRA's adapters to start from; None for fresh ones.

    Returns:
      The state, and the frozen parameters: LoRA's base, a frozen reference, or None.
    """
    if objective.compute.lora is not None:
        if adapters is None:
            return init_state(_fresh_adapters(objective, params, mesh), optimizer, mesh), params
        # A copy, because training donates its state and the policy keeps its adapters.
        return init_state(jax.tree.map(jnp.copy, adapters), optimizer, mesh), params
    frozen, moving = None, None
    if objective.keeps_reference:
        # The state is donated step by step, so the reference needs memory of its own: the caller's
        # arrays, and the state takes the copy.
        where = on_host(params, mesh) if objective.offloaded else None
        frozen = params if where is None else jax.device_put(params, where)
    # Parameters that train are fp32, whatever dtype they are computed with (`Objective.rounded`),
    # and so is a reference that moves towards them by small steps.
    trainable = as_float32(params)
    if objective.moving is not None:
        moving = jax.tree.map(jnp.copy, trainable)
    if keep or frozen is params:
        trainable = jax.tree.map(jnp.copy, trainable)
    return init_state(trainable, optimizer, mesh, moving), frozen


def _fresh_adapters(objective: Objective, params: Params, mesh: Mesh) -> Params:
    lora, key = objective.compute.lora, jax.random.key(objective.seed)
    assert lora is not None
    # DoRA starts at the lengths of the base's weights; of other adapters no array is passed in.
    base = params if lora.use_dora else None

    def initial(key: jax.Array, base: Params | None) -> Params:
        return init_lora(objective.model, lora, key, base)

    # Born sharded: no device ever holds them whole.
    shardings = shardings_for(jax.eval_shape(initial, key, base), mesh)
    return jax.jit(initial, out_shardings=shardings)(key, base)


def init_state(
    trainable: Params, optimizer: Optimizer, mesh: Mesh, reference: Params | None = None
) -> TrainState:
    """Makes the state before step 0, its optimizer state born sharded as the parameters are.

    Args:
      trainable: What is trained.
      optimizer: The update rule.
      mesh: The mesh.
      reference: The parameters that a moving reference starts from, if there is one; not copied.
    """
    update_rule = optimizer.update_rule()

    def initial(trainable: Params) -> TrainState:
        # Moments are fp32 whatever the parameters are: in bf16 a mean of squares stops moving.
        moments = update_rule.init(as_float32(trainable))
        average = jax.tree.map(jnp.copy, trainable) if optimizer.keeps_average() else None
        return TrainState(trainable, moments, jnp.zeros((), jnp.int32), average=average)

    shardings = shardings_for(jax.eval_shape(initial, trainable), mesh)
    state = jax.jit(initial, out_shardings=shardings)(trainable)
    return state._replace(reference=reference)


def as_float32(tree: Any) -> Any:
    """Casts every array of a tree to fp32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

"""The optimizer step: gradients over the step's microbatches, one update, one set of metrics."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdpo.data.batch import PackedBatch
from jaxdpo.losses import LossConfig, sigmoid_loss
from jaxdpo.metrics import preference_sums
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params
from jaxdpo.scoring import completion_logps, completion_logps_and_router_loss
from jaxdpo.sharding import replicated, shardings_for


class TrainState(NamedTuple):
    """What training changes, and what a checkpoint holds.

    Attributes:
      trainable: The parameters, or with LoRA the adapters alone.
      optimizer: The optimizer's state.
      step: i32, optimizer steps done.
    """

    trainable: Params
    optimizer: Any
    step: jax.Array


@dataclass(frozen=True)
class Objective:
    """What a step minimises, as static values.

    Attributes:
      model: Architecture.
      compute: How the model is computed; where it has `lora`, adapters are trained.
      loss: The loss.
      batch_size: Pairs of an optimizer step.
      seed: Seed of the adapters' dropout.
    """

    model: ModelConfig
    compute: Compute
    loss: LossConfig
    batch_size: int
    seed: int


def init_state(
    trainable: Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before step 0, its optimizer state born sharded as the parameters are."""

    def initial(trainable: Params) -> TrainState:
        # Moments are fp32 whatever the parameters are: in bf16 a mean of squares stops moving.
        moments = optimizer.init(_as_float32(trainable))
        return TrainState(trainable, moments, jnp.zeros((), jnp.int32))

    shardings = shardings_for(jax.eval_shape(initial, trainable), mesh)
    return jax.jit(initial, out_shardings=shardings)(trainable)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted optimizer step.

    Args:
      objective: What is minimised.
      optimizer: The update rule.
      schedule: Its learning rate, for the metrics.
      mesh: The mesh.
      state: The state to be trained, or its ShapeDtypeStructs; for its shardings.

    Returns:
      `(state, frozen, batch, reference, num_microbatches) → (state, metrics)`. `frozen` are the
      base parameters under LoRA, or a full fine-tuning's frozen reference, or None. `batch` has
      microbatches stacked, `[M, R, ...]`, of which the first `num_microbatches` count. `reference`
      is f32 `[M, R, P, 2]`, or None: then it is computed in the step, from `frozen`. The state is
      donated. Where loss or gradients are not finite, the state comes back unchanged.
    """
    state_shardings = shardings_for(state, mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(state_shardings, replicated(mesh)))
    def train_step(
        state: TrainState,
        frozen: Params | None,
        batch: PackedBatch,
        reference: jax.Array | None,
        num_microbatches: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        gradient = functools.partial(_gradient, objective, state, frozen)
        gradients, sums = _accumulate(gradient, batch, reference, num_microbatches)
        gradients = jax.lax.with_sharding_constraint(gradients, state_shardings.trainable)
        grad_norm = optax.global_norm(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        updated = TrainState(trainable, optimizer_state, state.step + 1)
        metrics = sums | {"grad_norm": grad_norm, "learning_rate": schedule(state.step)}
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state), metrics

    return train_step


def _gradient(
    objective: Objective,
    state: TrainState,
    frozen: Params | None,
    batch: PackedBatch,
    reference: jax.Array | None,
    microbatch: jax.Array,
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradients and metric sums of one microbatch's share of the step's loss."""
    model, compute, beta = objective.model, objective.compute, objective.loss.beta
    is_pair_RP = batch.pair_index >= 0
    if reference is None:
        assert frozen is not None
        reference = jax.lax.stop_gradient(completion_logps(model, frozen, None, batch, compute))
    dropout_key = None
    if compute.lora is not None and compute.lora.dropout > 0:
        key = jax.random.fold_in(jax.random.key(objective.seed), state.step)
        dropout_key = jax.random.fold_in(key, microbatch)

    def loss_sum(trainable: Params) -> tuple[jax.Array, Any]:
        params, lora = (frozen, trainable) if compute.lora is not None else (trainable, None)
        assert params is not None
        policy, router_loss = completion_logps_and_router_loss(
            model, params, lora, batch, compute, dropout_key=dropout_key
        )
        losses = sigmoid_loss(
            policy[..., 0], policy[..., 1], reference[..., 0], reference[..., 1], beta=beta
        )
        total = jnp.sum(jnp.where(is_pair_RP, losses, 0.0))
        sums = {"loss": total}
        if router_loss is not None:
            assert model.mlp.experts is not None
            # Of the microbatch's tokens, and weighted by its pairs as the losses are.
            sums["router_loss"] = router_loss * jnp.sum(is_pair_RP)
            total += model.mlp.experts.router_loss * sums["router_loss"]
        # The mean over the step's pairs, not the microbatch's: the shares add up.
        return total / objective.batch_size, (sums, policy)

    (_, (losses, policy)), gradients = jax.value_and_grad(loss_sum, has_aux=True)(state.trainable)
    num_tokens = jnp.sum(batch.pair_ids > 0).astype(jnp.float32)
    sums = preference_sums(policy, reference, is_pair_RP, beta)
    return _as_float32(gradients), {**losses, "num_tokens": num_tokens, **sums}


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _accumulate(
    gradient: Callable[..., tuple[Params, dict[str, jax.Array]]],
    batch: PackedBatch,
    reference: jax.Array | None,
    num_microbatches: jax.Array,
) -> tuple[Params, dict[str, jax.Array]]:
    """Sums over the first `num_microbatches` microbatches; the rest cost nothing."""

    def at(microbatch: jax.Array | int) -> tuple[Params, dict[str, jax.Array]]:
        one, one_reference = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, microbatch, keepdims=False),
            (batch, reference),
        )
        return gradient(one, one_reference, microbatch)

    if batch.tokens.shape[0] == 1:
        return at(0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(at, 0))
    return jax.lax.fori_loop(
        0, num_microbatches, lambda i, total: jax.tree.map(jnp.add, total, at(i)), zeros
    )

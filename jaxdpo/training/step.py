"""The optimizer step: gradients over the step's microbatches, one update, one set of metrics."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import CHOSEN, PackedBatch
from jaxdpo.devices.sharding import replicated, shardings_for
from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import implicit_rewards, loss_sums
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params
from jaxdpo.scoring.logprobs import Wanted
from jaxdpo.scoring.score import score_completions, score_completions_and_router_loss
from jaxdpo.scoring.scores import Completions
from jaxdpo.training.metrics import completion_sums, reward_sums


class TrainState(NamedTuple):
    """What training changes, and what a checkpoint holds.

    Attributes:
      trainable: The parameters, or with LoRA the adapters alone.
      optimizer: The optimizer's state.
      step: i32, optimizer steps done.
      reference: The parameters of a moving reference, or None.
    """

    trainable: Params
    optimizer: Any
    step: jax.Array
    reference: Params | None = None


class PairInputs(NamedTuple):
    """What a step is given of each pair beside its tokens, f32 `[..., R, P]`.

    Attributes:
      reference: `[..., R, P, 2]`, reference log-probs; None if the step computes them, or if there
        is no reference.
      weights: Factors on the pairs' losses, or None.
      margins: Target margins of reward, or None.
      labels: Of labelled answers: 1 if found good, 0 if not; or None.
    """

    reference: Any = None
    weights: Any = None
    margins: Any = None
    labels: Any = None


@dataclass(frozen=True)
class MovingReference:
    """A reference that follows the policy (TR-DPO).

    Attributes:
      mixup: Share of the policy in what the reference becomes.
      every: Optimizer steps between its moves.
    """

    mixup: float
    every: int


@dataclass(frozen=True)
class Objective:
    """What a step minimises, as static values.

    Attributes:
      model: Architecture.
      compute: How the model is computed; where it has `lora`, adapters are trained.
      loss: The loss.
      batch_size: Pairs of an optimizer step.
      seed: Seed of the adapters' dropout.
      has_reference: Whether rewards are against a reference.
      moving: How the reference moves, or None if it stands still.
      offloaded: Whether the frozen reference lies in the host's memory.
    """

    model: ModelConfig
    compute: Compute
    loss: LossConfig
    batch_size: int
    seed: int
    has_reference: bool = True
    moving: MovingReference | None = None
    offloaded: bool = False


def init_state(
    trainable: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    reference: Params | None = None,
) -> TrainState:
    """The state before step 0, its optimizer state born sharded as the parameters are.

    Args:
      trainable: What is trained.
      optimizer: The update rule.
      mesh: The mesh.
      reference: The parameters that a moving reference starts from, if there is one; not copied.
    """

    def initial(trainable: Params) -> TrainState:
        # Moments are fp32 whatever the parameters are: in bf16 a mean of squares stops moving.
        moments = optimizer.init(_as_float32(trainable))
        return TrainState(trainable, moments, jnp.zeros((), jnp.int32))

    shardings = shardings_for(jax.eval_shape(initial, trainable), mesh)
    state = jax.jit(initial, out_shardings=shardings)(trainable)
    return state._replace(reference=reference)


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
      `(state, frozen, batch, inputs, num_microbatches) → (state, metrics)`. `frozen` are the
      base parameters under LoRA, or a full fine-tuning's frozen reference, or None. `batch` has
      microbatches stacked, `[M, R, ...]`, of which the first `num_microbatches` count. `inputs`
      are `PairInputs` of the same leading axes; where they hold no reference log-probs and the
      objective has a reference, it is computed in the step, from `state.reference` or `frozen`.
      The state is donated. Where loss or gradients are not finite, it comes back unchanged.
    """
    state_shardings = shardings_for(state, mesh)
    rule = Rule(objective, optimizer, schedule, state_shardings.trainable)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(state_shardings, replicated(mesh)))
    def train_step(
        state: TrainState,
        frozen: Params | None,
        batch: PackedBatch,
        inputs: PairInputs,
        num_microbatches: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        return take_step(rule, state, frozen, batch, inputs, num_microbatches)

    return train_step


@dataclass(frozen=True)
class Rule:
    """What a step does.

    Attributes:
      objective: What is minimised.
      optimizer: The update rule.
      schedule: Its learning rate, for the metrics.
      shardings: Of the gradients.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    shardings: Any


def take_step(
    rule: Rule,
    state: TrainState,
    frozen: Params | None,
    batch: PackedBatch,
    inputs: PairInputs,
    num_microbatches: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step, to be compiled; the arguments are as `make_train_step` says."""
    objective = rule.objective
    mean_chosen_tokens = jnp.sum(batch.score_branch == CHOSEN) / objective.batch_size
    shares = _Shares(objective, state, frozen, mean_chosen_tokens)
    extra = (batch, inputs)
    # One microbatch holds all of the step's pairs: nothing need be known beforehand.
    if objective.loss.coupled and batch.tokens.shape[0] > 1:
        extra = (*extra, shares.coupled(batch, inputs, num_microbatches))
    gradients, sums = _accumulate(shares.gradient, extra, num_microbatches)
    gradients = jax.lax.with_sharding_constraint(gradients, rule.shardings)
    grad_norm = optax.global_norm(gradients)
    updates, optimizer_state = rule.optimizer.update(gradients, state.optimizer, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    reference = _moved(objective.moving, state, trainable)
    updated = TrainState(trainable, optimizer_state, state.step + 1, reference)
    metrics = sums | {"grad_norm": grad_norm, "learning_rate": rule.schedule(state.step)}
    finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state), metrics


def _moved(moving: MovingReference | None, state: TrainState, trainable: Params) -> Params | None:
    """The moving reference after an update.

    Every so many steps ref ← α π + (1 − α) ref: Gorbatovski et al. 2024, "Learn Your Reference
    Model for Real Good Alignment", equation 3; with α = 1 it is their hard update.
    """
    if moving is None:
        return state.reference
    share = jnp.where((state.step + 1) % moving.every == 0, moving.mixup, 0.0)

    def mixed(new: jax.Array, old: jax.Array) -> jax.Array:
        sum_ = share * new.astype(jnp.float32) + (1 - share) * old.astype(jnp.float32)
        return sum_.astype(old.dtype)

    return jax.tree.map(mixed, trainable, state.reference)


@dataclass(frozen=True)
class _Shares:
    """Each microbatch's share of a step's loss and gradients.

    Attributes:
      objective: What is minimised.
      state: The state before the step.
      frozen: As `make_train_step` says.
      mean_chosen_tokens: f32, tokens of a chosen completion, averaged over the step.
    """

    objective: Objective
    state: TrainState
    frozen: Params | None
    mean_chosen_tokens: jax.Array

    def gradient(
        self,
        microbatch: jax.Array | int,
        batch: PackedBatch,
        inputs: PairInputs,
        coupled: tuple[Completions, dict[str, jax.Array]] | None = None,
    ) -> tuple[Params, dict[str, jax.Array]]:
        """Gradients and metric sums of one microbatch; `coupled` is its part of `self.coupled`."""
        objective, is_pair_RP = self.objective, batch.pair_index >= 0
        reference = self._reference(batch, inputs)

        def loss_sum(trainable: Params) -> tuple[jax.Array, Any]:
            policy, router_loss = self._policy(trainable, batch, microbatch)
            if coupled is not None:
                sums, share = coupled[1], _linear(coupled[0], policy)
            else:
                sums = self._loss(policy, reference, is_pair_RP, inputs)
                # The mean over the step's pairs, not the microbatch's: the shares add up.
                share = sums["loss"] / objective.batch_size
            experts = objective.model.mlp.experts
            if experts is not None and router_loss is not None:
                # Of the microbatch's tokens, and weighted by its pairs as the losses are.
                router_sum = router_loss * jnp.sum(is_pair_RP)
                share += experts.router_loss * router_sum / objective.batch_size
                sums = {**sums, "router_loss": router_sum}
            return share, (sums, policy)

        (_, (sums, policy)), gradients = jax.value_and_grad(loss_sum, has_aux=True)(
            self.state.trainable
        )
        num_tokens = jnp.sum(batch.pair_ids > 0).astype(jnp.float32)
        labels = inputs.labels
        sums = {**sums, "num_tokens": num_tokens}
        sums |= completion_sums(policy, reference, is_pair_RP, labels)
        if not objective.loss.supervised:
            rewards = implicit_rewards(objective.loss, policy, reference)
            sums |= reward_sums(rewards, is_pair_RP, labels)
        return _as_float32(gradients), sums

    def coupled(
        self, batch: PackedBatch, inputs: PairInputs, num_microbatches: jax.Array
    ) -> tuple[Completions, dict[str, jax.Array]]:
        """Of losses that couple the step's pairs: the slope of the loss in every score.

        The pairs are scored once more beforehand, all microbatches; with the loss's slopes in
        their scores each microbatch then has its exact share of the gradient by the chain rule.

        Returns:
          ∂ loss / ∂ scores, `[M, R, P, 2]`, and the loss sums `[M]`, all on the first microbatch.
        """

        def score(microbatch: jax.Array, one: tuple[PackedBatch, PairInputs]) -> Any:
            policy, _ = self._policy(self.state.trainable, one[0], microbatch)
            return policy, self._reference(*one)

        count = batch.tokens.shape[0]
        policy, reference = jax.lax.map(lambda at: score(*at), (jnp.arange(count), (batch, inputs)))
        is_pair = (batch.pair_index >= 0) & (jnp.arange(count)[:, None, None] < num_microbatches)

        def loss(policy: Completions) -> tuple[jax.Array, dict[str, jax.Array]]:
            sums = self._loss(policy, reference, is_pair, inputs)
            return sums["loss"] / self.objective.batch_size, sums

        slopes, sums = jax.grad(loss, has_aux=True)(policy)
        first = jnp.arange(count) == 0
        return slopes, {name: jnp.where(first, value, 0.0) for name, value in sums.items()}

    def _loss(
        self,
        policy: Completions,
        reference: jax.Array | None,
        is_pair: jax.Array,
        inputs: PairInputs,
    ) -> dict[str, jax.Array]:
        return loss_sums(
            self.objective.loss,
            policy,
            reference,
            is_pair,
            self.mean_chosen_tokens,
            inputs.margins,
            inputs.weights,
            inputs.labels,
        )

    def _policy(
        self, trainable: Params, batch: PackedBatch, microbatch: jax.Array | int
    ) -> tuple[Completions, jax.Array | None]:
        objective, compute = self.objective, self.objective.compute
        dropout_key = None
        if compute.lora is not None and compute.lora.dropout > 0:
            key = jax.random.fold_in(jax.random.key(objective.seed), self.state.step)
            dropout_key = jax.random.fold_in(key, microbatch)
        params, lora = (self.frozen, trainable) if compute.lora is not None else (trainable, None)
        assert params is not None
        return score_completions_and_router_loss(
            objective.model,
            params,
            lora,
            batch,
            compute,
            ld_alpha=objective.loss.ld_alpha,
            wanted=Wanted(log_weights=objective.loss.use_weighting),
            dropout_key=dropout_key,
        )

    def _reference(self, batch: PackedBatch, inputs: PairInputs) -> jax.Array | None:
        objective = self.objective
        if inputs.reference is not None or not objective.has_reference:
            return inputs.reference
        params = self.frozen if objective.moving is None else self.state.reference
        assert params is not None
        scores = score_completions(
            objective.model,
            params,
            None,
            batch,
            replace(objective.compute, offloaded=objective.offloaded),
            ld_alpha=objective.loss.ld_alpha,
        )
        return jax.lax.stop_gradient(scores.logps)


def _linear(slopes: Completions, policy: Completions) -> jax.Array:
    """Σ slope · score: the function whose gradient the chain rule asks for."""
    products = jax.tree.map(lambda slope, score: jnp.sum(slope * score), slopes, policy)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _accumulate(
    gradient: Callable[..., tuple[Params, dict[str, jax.Array]]],
    stacked: tuple[Any, ...],
    num_microbatches: jax.Array,
) -> tuple[Params, dict[str, jax.Array]]:
    """Sums over the first `num_microbatches` microbatches; the rest cost nothing."""

    def at(microbatch: jax.Array | int) -> tuple[Params, dict[str, jax.Array]]:
        one = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, microbatch, keepdims=False), stacked
        )
        return gradient(microbatch, *one)

    if jax.tree.leaves(stacked)[0].shape[0] == 1:
        return at(0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(at, 0))
    return jax.lax.fori_loop(
        0, num_microbatches, lambda i, total: jax.tree.map(jnp.add, total, at(i)), zeros
    )

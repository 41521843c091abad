"""The optimizer step: gradients over the step's microbatches, one update, one set of metrics.

Letters of shapes: M microbatches, R rows, P pairs of a row, K runs trained at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import CHOSEN, PackedBatch
from jaxdpo.devices.sharding import replicated, shardings_for
from jaxdpo.losses.mixture import loss_sums
from jaxdpo.model.decoder import Params
from jaxdpo.scoring.logprobs import Wanted
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.score import score_completions
from jaxdpo.scoring.scores import BatchScores, CompletionScores
from jaxdpo.training.metrics import pair_metrics
from jaxdpo.training.multi_run import differing_numbers, one_of, with_numbers
from jaxdpo.training.objective import MovingReference, Objective
from jaxdpo.training.optimizer import Optimizer
from jaxdpo.training.state import TrainState, as_float32

Sums = dict[str, jax.Array]


def make_train_step(
    objectives: Sequence[Objective],
    optimizers: Sequence[Optimizer],
    mesh: Mesh,
    state: TrainState,
) -> Callable[..., tuple[TrainState, Sums]]:
    """Returns the jitted optimizer step of one run, or of several that are trained at once.

    Args:
      objectives: What each run minimises; alike but for the numbers of their losses.
      optimizers: Each run's update rule; alike but for their numbers.
      mesh: The mesh.
      state: The state to be trained, or its ShapeDtypeStructs, for its shardings; of several runs
        stacked, `[K, ...]`.

    Returns:
      `(state, frozen, batch, columns, num_microbatches) → (state, metrics)`. `frozen` are the
      base parameters under LoRA, or a full fine-tuning's frozen reference, or None. `batch` has
      microbatches stacked, `[M, R, ...]`, of which the first `num_microbatches` count. `columns`
      are `PairColumns` of the same leading axes; where they hold no reference log-probs and the
      objective has a reference, it is computed in the step, from `state.reference` or `frozen`.
      Metrics are sums over pairs, `[K]` for several runs. The state is donated. Where loss or
      gradients are not finite, it comes back unchanged.
    """
    several = len(objectives) > 1
    numbers = differing_numbers(objectives, optimizers)
    gradient_shardings = shardings_for(
        one_of(state.trainable) if several else state.trainable, mesh
    )

    def one_run(numbers: Any, state: TrainState, *inputs: Any) -> tuple[TrainState, Sums]:
        objective, optimizer = with_numbers(objectives[0], optimizers[0], numbers)
        with objective.compute.exact_products():
            return take_step(objective, optimizer, gradient_shardings, state, *inputs)

    def train_step(
        state: TrainState,
        frozen: Params | None,
        batch: PackedBatch,
        columns: PairColumns,
        num_microbatches: jax.Array,
    ) -> tuple[TrainState, Sums]:
        inputs = (frozen, batch, columns, num_microbatches)
        if not several:
            return one_run(numbers, state, *inputs)
        # The runs see the same base and the same batch; only state and numbers are their own.
        every_run = jax.vmap(one_run, in_axes=(0, 0, None, None, None, None))
        return every_run(numbers, state, *inputs)

    out_shardings = (shardings_for(state, mesh), replicated(mesh))
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=out_shardings,
        compiler_options=objectives[0].compute.compiler_options(mesh),
    )


def take_step(
    objective: Objective,
    optimizer: Optimizer,
    gradient_shardings: Any,
    state: TrainState,
    frozen: Params | None,
    batch: PackedBatch,
    columns: PairColumns,
    num_microbatches: jax.Array,
) -> tuple[TrainState, Sums]:
    """Takes one optimizer step, to be compiled.

    Args:
      objective: What is minimised.
      optimizer: The update rule.
      gradient_shardings: Where the gradients' pieces belong.
      state: The state before the step.
      frozen: Parameters that do not train, or None.
      batch: The step's microbatches, `[M, R, ...]`.
      columns: Numbers of their pairs, f32 `[M, R, P]`.
      num_microbatches: i32, how many of the M count.

    Returns:
      The state after the step, and the metrics' sums over its pairs.
    """
    mean_chosen_tokens = jnp.sum(batch.score_branch == CHOSEN) / objective.batch_size
    scoring = _StepScoring(objective, state, frozen, mean_chosen_tokens)
    microbatches = (batch, columns)
    # With one microbatch all of the step's pairs are scored together: nothing need be known
    # beforehand.
    if objective.loss.coupled and batch.tokens.shape[0] > 1:
        microbatches = (*microbatches, scoring.coupled_slopes(batch, columns, num_microbatches))
    gradients, sums = _accumulate(scoring.gradient, microbatches, num_microbatches)
    gradients = jax.lax.with_sharding_constraint(gradients, gradient_shardings)
    grad_norm = optax.global_norm(gradients)
    update_rule = optimizer.update_rule()
    updates, optimizer_state = update_rule.update(gradients, state.optimizer, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    reference = _moved(objective.moving, state, trainable)
    average = state.average
    if average is not None:
        average = optimizer.average(average, optimizer_state, trainable, state.step)
    updated = TrainState(trainable, optimizer_state, state.step + 1, reference, average)
    metrics = sums | {"grad_norm": grad_norm, "learning_rate": optimizer.schedule()(state.step)}
    finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm)
    # `where` and not a factor: 0 · NaN is NaN. The optimizer's moments are held back too, in which
    # one infinity would stay for good.
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state), metrics


def _moved(moving: MovingReference | None, state: TrainState, trainable: Params) -> Params | None:
    """Moves a moving reference after an update.

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
class _StepScoring:
    """The scores of a step's microbatches under the policy and the reference.

    Attributes:
      objective: What is minimised.
      state: The state before the step.
      frozen: Parameters that do not train, or None.
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
        columns: PairColumns,
        coupled: tuple[CompletionScores, Sums] | None = None,
    ) -> tuple[Params, Sums]:
        """Computes a microbatch's share of the step's gradients, and its metrics' sums.

        Args:
          microbatch: Its number, from 0.
          batch: Its arrays, `[R, ...]`.
          columns: Its pairs' numbers, f32 `[R, P]`.
          coupled: Its part of `coupled_slopes`, for losses that couple the step's pairs.
        """
        objective, is_pair_RP = self.objective, batch.pair_index >= 0
        columns = columns._replace(reference=self._reference_logps(batch, columns))

        def loss_share(trainable: Params) -> tuple[jax.Array, tuple[Sums, CompletionScores]]:
            scores = self._policy_scores(trainable, batch, microbatch)
            policy = scores.completions
            if coupled is not None:
                sums, share = coupled[1], _linear(coupled[0], policy)
            else:
                sums = loss_sums(
                    objective.loss, policy, columns, is_pair_RP, self.mean_chosen_tokens
                )
                # The mean over the step's pairs, not the microbatch's: the shares add up.
                share = sums["loss"] / objective.batch_size
            experts = objective.model.mlp.experts
            if experts is not None and scores.router_loss is not None:
                # Of the microbatch's tokens, and weighted by its pairs as the losses are.
                router_sum = scores.router_loss * jnp.sum(is_pair_RP)
                share += experts.router_loss * router_sum / objective.batch_size
                sums = {**sums, "router_loss": router_sum}
            return share, (sums, policy)

        (_, (sums, policy)), gradients = jax.value_and_grad(loss_share, has_aux=True)(
            self.state.trainable
        )
        num_tokens = jnp.sum(batch.pair_ids > 0).astype(jnp.float32)
        sums = {**sums, "num_tokens": num_tokens}
        sums |= pair_metrics(objective.loss, policy, columns, is_pair_RP)
        return as_float32(gradients), sums

    def coupled_slopes(
        self, batch: PackedBatch, columns: PairColumns, num_microbatches: jax.Array
    ) -> tuple[CompletionScores, Sums]:
        """Computes the slope of a loss that couples the step's pairs in each of their scores.

        Such a loss sorts all pairs of the step, or reads their mean, so no microbatch has a loss of
        its own. Its gradient is Σ (∂ loss / ∂ score) (∂ score / ∂ parameters) over all scores, and
        the first factor needs every score before the first backward pass. Keeping every
        microbatch's activations until then would undo what microbatches are for, so the pairs are
        scored twice: here without gradients, for the slopes, and once more in `gradient`, one
        microbatch at a time, for the second factor.

        Args:
          batch: All microbatches, `[M, R, ...]`.
          columns: Their pairs' numbers, f32 `[M, R, P]`.
          num_microbatches: i32, how many of the M count.

        Returns:
          ∂ loss / ∂ scores, `[M, R, P, 2]`, and the loss sums `[M]`, all on the first microbatch.
        """

        def score(one: tuple[jax.Array, PackedBatch, PairColumns]) -> Any:
            microbatch, batch, columns = one
            scores = self._policy_scores(self.state.trainable, batch, microbatch)
            return scores.completions, self._reference_logps(batch, columns)

        count = batch.tokens.shape[0]
        # One after the other: `vmap` would hold the activations of all of them.
        policy, reference = jax.lax.map(score, (jnp.arange(count), batch, columns))
        counted = jnp.arange(count)[:, None, None] < num_microbatches
        is_pair_MRP = (batch.pair_index >= 0) & counted

        def loss(policy: CompletionScores) -> tuple[jax.Array, Sums]:
            given = columns._replace(reference=reference)
            sums = loss_sums(
                self.objective.loss, policy, given, is_pair_MRP, self.mean_chosen_tokens
            )
            return sums["loss"] / self.objective.batch_size, sums

        slopes, sums = jax.grad(loss, has_aux=True)(policy)
        # Sums are added over microbatches: the first one carries the step's.
        first = jnp.arange(count) == 0
        return slopes, {name: jnp.where(first, value, 0.0) for name, value in sums.items()}

    def _policy_scores(
        self, trainable: Params, batch: PackedBatch, microbatch: jax.Array | int
    ) -> BatchScores:
        objective, compute = self.objective, self.objective.compute
        dropout_key = None
        if compute.draws:
            # A function of seed, step and microbatch alone: a continued run drops the same inputs
            # and adds the same noise, and so do both passes over a microbatch of a coupled loss.
            key = jax.random.fold_in(jax.random.key(objective.seed), self.state.step)
            dropout_key = jax.random.fold_in(key, microbatch)
        params, lora = objective.split(trainable, self.frozen)
        return score_completions(
            objective.model,
            params,
            lora,
            batch,
            compute,
            ld_alpha=objective.loss.ld_alpha,
            wanted=Wanted(log_weights=objective.loss.use_weighting),
            dropout_key=dropout_key,
        )

    def _reference_logps(self, batch: PackedBatch, columns: PairColumns) -> jax.Array | None:
        objective = self.objective
        if columns.reference is not None or not objective.has_reference:
            return columns.reference
        params = self.frozen
        if objective.moving is not None and self.state.reference is not None:
            params = objective.rounded(self.state.reference)
        assert params is not None
        scores = score_completions(
            objective.model,
            params,
            None,
            batch,
            replace(objective.compute, offloaded=objective.offloaded),
            ld_alpha=objective.loss.ld_alpha,
        )
        return jax.lax.stop_gradient(scores.completions.logps)


def _linear(slopes: CompletionScores, policy: CompletionScores) -> jax.Array:
    """Computes Σ slope · score: the function whose gradient the chain rule asks for."""
    products = jax.tree.map(lambda slope, score: jnp.sum(slope * score), slopes, policy)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _accumulate(
    gradient: Callable[..., tuple[Params, Sums]],
    stacked: tuple[Any, ...],
    num_microbatches: jax.Array,
) -> tuple[Params, Sums]:
    """Sums over the first `num_microbatches` microbatches; the rest cost nothing."""

    def at(microbatch: jax.Array | int) -> tuple[Params, Sums]:
        one = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, microbatch, keepdims=False), stacked
        )
        return gradient(microbatch, *one)

    if jax.tree.leaves(stacked)[0].shape[0] == 1:
        return at(0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(at, 0))
    # `fori_loop` and not `scan`: its number of turns is known only when the step runs. M is the
    # most microbatches of any step, and a scan would compute the padding of all the others;
    # nothing is differentiated through the loop, so that it may be a `while`.
    return jax.lax.fori_loop(
        0, num_microbatches, lambda i, total: jax.tree.map(jnp.add, total, at(i)), zeros
    )

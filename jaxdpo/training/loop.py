"""The training loop: batches in, metrics and checkpoints out, the device never waiting."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import PairSource, empty_batch, pack_batch
from jaxdpo.data.packing.plan import BatchShape, TrainPlan
from jaxdpo.devices.machine import peak_memory
from jaxdpo.devices.sharding import local_rows, put_rows, replicated
from jaxdpo.errors import UserError
from jaxdpo.scoring.score import READ_OPTIONS, put_batch
from jaxdpo.training.metrics import means
from jaxdpo.training.step import PairInputs, TrainState

Metrics = dict[str, float]
DeviceMetrics = dict[str, Any]


@dataclass(frozen=True)
class TrainData:
    """The training pairs, planned.

    Attributes:
      source: The tokenised pairs.
      plan: Step ↦ microbatches.
      shape: The run's one batch shape.
      reference: f32 `[N, 2]` reference log-probs by pair, or None if the step computes them.
      weights: f32 `[N]` factors on the pairs' losses, or None.
      margins: f32 `[N]` target margins of reward, or None.
      labels: f32 `[N]` labels of answers, 1 if found good, 0 if not, or None.
    """

    source: PairSource
    plan: TrainPlan
    shape: BatchShape
    reference: np.ndarray | None
    weights: np.ndarray | None = None
    margins: np.ndarray | None = None
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class StepInput:
    """One optimizer step's arrays on the host, for the rows of this process."""

    step: int
    batch: PackedBatch
    inputs: PairInputs
    num_microbatches: int


def step_inputs(data: TrainData, rows: list[int], first_step: int) -> Iterator[StepInput]:
    """The inputs of steps `first_step`, `first_step + 1`, …, made ahead by threads."""

    def build(step: int) -> StepInput:
        microbatches = data.plan.microbatches(step)
        share = data.plan.packer.config.share_prefix
        packed = [
            pack_batch(data.source, microbatch, data.shape, share_prefix=share, rows=rows)
            for microbatch in microbatches
        ]
        missing = data.shape.microbatches - len(packed)
        packed += [empty_batch(data.shape, len(rows))] * missing
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *packed)
        given = PairInputs(data.reference, data.weights, data.margins, data.labels)
        inputs = jax.tree.map(lambda values: _by_slot(values, batch.pair_index), given)
        return StepInput(step, batch, inputs, len(microbatches))

    steps = grain.MapDataset.range(first_step, data.plan.num_steps)
    yield from steps.map(build).to_iter_dataset(READ_OPTIONS)


def _by_slot(values: np.ndarray, pair_index: np.ndarray) -> np.ndarray:
    """Values of pairs, f32 `[N, ...]`, where the pairs stand in a batch; 0 where none does."""
    present = pair_index.reshape(*pair_index.shape, *(1,) * (values.ndim - 1)) >= 0
    return np.where(present, values[pair_index], np.float32(0))


def run_steps(
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    frozen: Any,
    data: TrainData,
    mesh: Mesh,
    first_step: int,
) -> Iterator[tuple[int, TrainState, DeviceMetrics]]:
    """Runs the optimizer steps from `first_step` on.

    Args:
      train_step: From `make_train_step`.
      state: The state after `first_step` steps; donated.
      frozen: Frozen parameters, as `train_step` takes them.
      data: The training pairs.
      mesh: The mesh.
      first_step: Steps already done.

    Yields:
      After each step: the number of steps done, the state (valid until the next one is asked for),
      and the step's metric sums, still on the device and perhaps still being computed.
    """
    rows, count = local_rows(mesh, data.shape.rows), data.shape.rows
    for inputs in step_inputs(data, rows, first_step):
        batch = put_batch(inputs.batch, rows, count, mesh, row_axis=1)
        given = jax.tree.map(
            lambda values: put_rows(values, rows, count, mesh, row_axis=1), inputs.inputs
        )
        num_microbatches = jax.device_put(np.int32(inputs.num_microbatches), replicated(mesh))
        state, metrics = train_step(state, frozen, batch, given, num_microbatches)
        slots = inputs.num_microbatches * count * data.shape.row_length
        yield inputs.step + 1, state, {**metrics, "num_slots": slots}


class LaggedMetrics:
    """Reads metrics one step late, when the next step is under way already.

    So reading never holds the device up. Times are taken between readings; the first after
    `restart_clock` has none, because compiling or evaluating went before it.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, DeviceMetrics] | None = None
        self._last: float | None = None

    def push(self, step: int, metrics: DeviceMetrics) -> tuple[int, Metrics] | None:
        """Takes a step's metrics; returns the step before it and its metrics, if any."""
        ready = self.flush()
        self._pending = (step, metrics)
        return ready

    def flush(self) -> tuple[int, Metrics] | None:
        """The metrics that are pending, once they are computed."""
        if self._pending is None:
            return None
        step, device_metrics = self._pending
        self._pending = None
        sums = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        now = time.perf_counter()
        slots = sums.pop("num_slots")
        of_step = {name: sums.pop(name) for name in ("grad_norm", "learning_rate")}
        metrics = means(sums) | of_step
        metrics["packing_efficiency"] = sums["num_tokens"] / slots
        metrics["peak_memory_gib"] = peak_memory() / 2**30
        if self._last is not None:
            metrics["step_seconds"] = now - self._last
            metrics["pairs_per_second"] = sums["num_pairs"] / metrics["step_seconds"]
        self._last = now
        return step, metrics

    def restart_clock(self) -> None:
        """Leaves what happens until the next reading out of the times."""
        self._last = None


def check_finite(step: int, metrics: Metrics, data: TrainData) -> None:
    """Stops a run whose loss or gradients are no longer finite.

    Raises:
      UserError: Naming the step and its pairs. The state was left as it was before the step.
    """
    if np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]):
        return
    pairs = [data.source.source(int(index)) for index in data.plan.pairs(step - 1)]
    raise UserError(
        f"step {step}: loss is {metrics['loss']}, gradient norm {metrics['grad_norm']}; the step "
        f"was not applied. Its pairs: {', '.join(pairs[:8])}{' …' if len(pairs) > 8 else ''}. "
        "Lower optimizer.learning_rate, or compute in float32 (model.compute_dtype)"
    )


def check_step_zero(metrics: Metrics, beta: float, dtype: str) -> None:
    """Checks that the policy still equals its reference before the first update.

    Then every reward is 0. Log-probs of a completion, summed over its tokens, are given 0.02 nats
    of rounding in float32 and 0.5 in bfloat16.

    Raises:
      UserError: If they differ.
    """
    allowed = beta * (0.02 if dtype == "float32" else 0.5)
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    # A step of labelled answers may hold none with either label.
    found = {name: metrics[name] for name in names if name in metrics}
    if any(abs(value) > allowed for value in found.values()):
        shown = ", ".join(f"{name} {value:.5f}" for name, value in found.items())
        raise UserError(
            f"step 1: {shown}, but a policy that equals its reference has rewards of 0 (allowed: "
            f"±{allowed:.3g}). The reference was not computed with the weights or tokens that "
            "training starts from: delete the reference folder in data.cache_dir, or set "
            "reference.kind=frozen to compare"
        )

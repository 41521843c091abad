"""The inputs of optimizer steps, packed on the host ahead of the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import grain
import jax
import numpy as np

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import READ_AHEAD, empty_batch, pack_batch
from jaxdpo.data.packing.plan import TrainPlan
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs


@dataclass(frozen=True)
class StepInput:
    """One optimizer step's arrays on the host, for the rows of this process.

    Attributes:
      step: Its number, from 0.
      batch: Its microbatches, `[M, R, ...]`, those that it does not need being padding.
      columns: Their pairs' numbers, f32 `[M, R, P]`.
      num_microbatches: How many of the M it needs.
    """

    step: int
    batch: PackedBatch
    columns: PairColumns
    num_microbatches: int


def step_inputs(
    pairs: PlannedPairs, plan: TrainPlan, rows: list[int], first_step: int
) -> Iterator[StepInput]:
    """Yields the inputs of steps `first_step`, `first_step + 1`, …, made ahead by threads.

    Args:
      pairs: The training pairs.
      plan: Step ↦ microbatches.
      rows: Which rows of a microbatch this process holds.
      first_step: Steps already done.
    """
    shape, share_prefix = pairs.shape, pairs.packer.config.share_prefix

    def build(step: int) -> StepInput:
        microbatches = plan.microbatches(step)
        packed = [
            pack_batch(pairs.source, microbatch, shape, share_prefix=share_prefix, rows=rows)
            for microbatch in microbatches
        ]
        # Every step has the same shape, so that there is one compile.
        packed += [empty_batch(shape, len(rows))] * (shape.microbatches - len(packed))
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *packed)
        return StepInput(step, batch, pairs.columns.at(batch.pair_index), len(microbatches))

    # The step's number is all that a worker needs: nothing has to be replayed to continue a run.
    steps = grain.MapDataset.range(first_step, plan.num_steps)
    yield from steps.map(build).to_iter_dataset(READ_AHEAD)

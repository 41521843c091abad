"""The training loop: batches in, states and metrics out, the device never waiting."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.packing.plan import TrainPlan
from jaxdpo.devices.sharding import local_rows, put_rows, replicated
from jaxdpo.scoring.planned_pairs import PlannedPairs
from jaxdpo.training.data import step_inputs
from jaxdpo.training.metrics import DeviceMetrics
from jaxdpo.training.state import TrainState


def run_steps(
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    frozen: Any,
    pairs: PlannedPairs,
    plan: TrainPlan,
    mesh: Mesh,
    first_step: int,
) -> Iterator[tuple[int, TrainState, DeviceMetrics]]:
    """Runs the optimizer steps from `first_step` on.

    Args:
      train_step: From `make_train_step`.
      state: The state after `first_step` steps; donated.
      frozen: Frozen parameters, as `train_step` takes them.
      pairs: The training pairs.
      plan: Step ↦ microbatches.
      mesh: The mesh.
      first_step: Steps already done.

    Yields:
      After each step: the number of steps done, the state (valid until the next one is asked for),
      and the step's metric sums, still on the device and perhaps still being computed.
    """
    count = pairs.shape.rows
    # Every process packs the rows of its own devices and no others.
    rows = local_rows(mesh, count)
    for inputs in step_inputs(pairs, plan, rows, first_step):
        batch, columns = put_rows((inputs.batch, inputs.columns), rows, count, mesh, row_axis=1)
        num_microbatches = jax.device_put(np.int32(inputs.num_microbatches), replicated(mesh))
        # Returns at once: the device computes while the next step's rows are put together.
        state, metrics = train_step(state, frozen, batch, columns, num_microbatches)
        slots = inputs.num_microbatches * count * pairs.shape.row_length
        yield inputs.step + 1, state, {**metrics, "num_slots": slots}

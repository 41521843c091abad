"""Traces of chosen optimizer steps, by JAX's profiler."""

from collections.abc import Iterator
from pathlib import Path

import jax

from jaxdpo.training.metrics import DeviceMetrics
from jaxdpo.training.state import TrainState

# Folder of a run's traces, below which TensorBoard's profile plugin and xprof look for them.
_PROFILE = "profile"
Steps = Iterator[tuple[int, TrainState, DeviceMetrics]]


def traced(steps: Steps, span: tuple[int, int] | None, folder: Path, first_step: int) -> Steps:
    """Passes the steps of a run on, and writes a trace of some of them.

    The trace holds what the host does between two of them as well, such as an evaluation, and the
    compilation if the first step of the process is among them.

    Args:
      steps: As `run_steps` yields them.
      span: The first and the last step to trace, counted from 1. A run that continues in between
        traces those that are left. None traces none.
      folder: The run folder; the trace is written to `profile/` in it.
      first_step: Steps already done.

    Yields:
      The same steps.
    """
    if span is None:
        yield from steps
        return
    first, last = span
    done, tracing = first_step, False
    try:
        while True:
            # A step is begun when it is asked for, so the trace begins before that.
            if not tracing and first - 1 <= done < last:
                jax.profiler.start_trace(folder / _PROFILE, create_perfetto_trace=True)
                tracing = True
            with jax.profiler.StepTraceAnnotation("optimizer step", step_num=done + 1):
                taken = next(steps, None)
            if taken is None:
                return
            done = taken[0]
            if tracing and done == last:
                # The device may be computing the step still.
                jax.block_until_ready(taken[2])
                jax.profiler.stop_trace()
                tracing = False
            yield taken
    finally:
        # A run that is stopped keeps the trace of what it did.
        if tracing:
            jax.profiler.stop_trace()

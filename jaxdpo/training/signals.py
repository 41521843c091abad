"""SIGTERM as a request to save and stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A request to stop, once a signal has made it.

    Attributes:
      asked: Whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False

    @property
    def alone(self) -> bool:
        """True if this process was asked and may act by itself, there being no others."""
        return self.asked and jax.process_count() == 1

    def agreed(self, step: int) -> bool:
        """Tells whether the run is to stop after this step; every process must call it every step.

        Args:
          step: Steps done.
        """
        # A process that stopped by itself would leave the others waiting in their next collective;
        # JAX's service, which catches the signal too, agrees with all of them on one step.
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Notes a SIGTERM within the block instead of letting it end the process.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.
    """
    request = StopRequest()

    def note(signum: int, frame: object) -> None:
        request.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)

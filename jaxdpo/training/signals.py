"""SIGTERM as a request to save and stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Within the block a SIGTERM is noted instead of ending the process.

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

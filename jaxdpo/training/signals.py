"""SIGTERM, SIGHUP and SIGINT as requests to save and stop.

SIGINT is Ctrl-C: whoever presses it a second time does not want to wait for the step and the save,
and a run of one process is then interrupted at once, as Python programs are.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

from jaxdpo.devices import peers
from jaxdpo.devices.distributed_config import DistributedConfig
from jaxdpo.devices.joining import start_peers
from jaxdpo.devices.peers import Peers


class StopRequest:
    """A request to stop, once a signal has made it.

    Args:
      others: The other processes of the run, or None.
    """

    def __init__(self, others: Peers | None = None) -> None:
        self._others = others
        self.signum: int | None = None

    def after_step(self) -> bool:
        """Tells whether the run stops after this step; every process must call it every step."""
        if self._others is not None:
            return self._others.passes_point(unsaved=True)
        return self.signum is not None

    def cuts_short(self) -> bool:
        """Tells whether an evaluation ends here; every process must call it after each batch."""
        if self._others is not None:
            return self._others.passes_point()
        return self.signum is not None

    def after_last_step(self) -> bool:
        """Tells whether the run stops before its export, once every process has saved its state."""
        if self._others is not None:
            # Process 0 writes the manifest, without which nothing counts as saved.
            self._others.wait_for_all("saved")
            return self._others.passes_point(unsaved=False)
        return self.signum is not None

    @property
    def cause(self) -> str:
        """The signal, and with several processes the one that it was sent to."""
        if self._others is not None and self._others.verdict is not None:
            return self._others.verdict.cause()
        return signal.Signals(self.signum or signal.SIGTERM).name

    @property
    def interrupts(self) -> bool:
        """Tells whether the request was Ctrl-C in a run of one process."""
        return self._others is None and self.signum == signal.SIGINT

    @property
    def status(self) -> int:
        """The status that a shell reports of a process that the signal ended."""
        if self._others is not None and self._others.verdict is not None:
            return 128 + self._others.verdict.signum
        return 128 + (self.signum or signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Notes a signal within the block instead of letting it end the process.

    Outside the main thread, where Python allows no signal handlers, nothing is caught here; with
    several processes, a signal to another one stops this one too.
    """
    if jax.process_count() > 1 and jax.distributed.is_initialized():
        with _with_peers() as others:
            yield StopRequest(others)
        return
    request = StopRequest()

    def note(signum: int, frame: object) -> None:
        if signum == signal.SIGINT:
            if request.signum is not None:
                raise KeyboardInterrupt
            # Neither print nor a reporter: the process may be in the middle of either.
            with contextlib.suppress(OSError):
                os.write(1, b"\nstopping after this step; Ctrl-C again stops at once\n")
        request.signum = request.signum or signum

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        # Under `nohup` SIGHUP is ignored already, and stays so.
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _with_peers() -> Iterator[Peers]:
    """Yields the peers that the command keeps in touch with; in a program, for this block."""
    if (kept := peers.current()) is not None:
        yield kept
        return
    own = start_peers(DistributedConfig())
    try:
        yield own
    finally:
        own.close()
        peers.keep(None)

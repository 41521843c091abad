"""Signals that are noted the moment they arrive, whatever the main thread is doing.

Python runs a signal's handler between two instructions of the main thread, which may be minutes
away while a program is compiled or a collective waits. The number of the signal is written to a
file descriptor at once, by the handler in C, and a thread can wait for that.
"""

import os
import signal
import socket
import threading
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class CaughtSignals:
    """Requests to stop, by signal.

    Attributes:
      first: The first signal that arrived, or None.
      pipe: Becomes readable when one arrives.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.pipe, self._end = socket.socketpair()
        self.pipe.setblocking(False)
        self._end.setblocking(False)
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def catch(self, numbers: tuple[int, ...] = STOPS) -> None:
        """Catches signals from now on; outside the main thread, where Python allows none, nothing.

        A signal that is ignored already stays so: `nohup` ignores SIGHUP.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        # A forked child shares the descriptor, and a signal to it is none to this process.
        os.register_at_fork(after_in_child=self._forget)
        self._wakeup_before = signal.set_wakeup_fd(self._end.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Lets signals do what they did before."""
        if not self._before or threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        signal.set_wakeup_fd(self._wakeup_before)

    @staticmethod
    def _forget() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)

    def drain(self) -> None:
        """Reads which signals have arrived; to be called when `pipe` is readable."""
        for number in os.read(self.pipe.fileno(), 64):
            if self.first is None and number in STOPS:
                self.first = number

    def _note(self, number: int, frame: FrameType | None) -> None:
        # One is like the next: a second signal asks for nothing more.
        if self.first is None:
            self.first = number

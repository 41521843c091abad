"""The decision of the processes of a run to stop together."""

import signal
from typing import NamedTuple


class Verdict(NamedTuple):
    """The common point at which all processes stop.

    Attributes:
      signum: The signal that asked for it.
      source: The process that the signal was sent to.
      at: Number of the point; None: at once, because nothing is unsaved.
    """

    signum: int
    source: int
    at: int | None

    def cause(self) -> str:
        """Returns `SIGTERM to process 1`."""
        return f"{signal.Signals(self.signum).name} to process {self.source}"

"""Runs a command that is one of several processes as a child, and says why it died.

When the coordinator is gone, JAX's threads abort the process with a C++ stack, and nothing inside
the process can prevent it; killed for want of memory, it can say nothing at all. The parent holds
nothing but the child's error output, and puts one message in the place of the stack. It imports no
JAX, and takes about 10 MB.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

from jaxdpo.devices.cluster import Cluster
from jaxdpo.printable import show

_PARENT = "JAXDPO_PARENT"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# As `jaxdpo.devices.peers` has it, which imports more than this module may.
_LOST = 75
# The C++ log of JAX's coordination service: "E1127 11:56:41.194068   14072 file.cc:289] text".
_CPP_LOG = re.compile(r"[EFW]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<file>[\w.]+):\d+\]")
# What a status of gRPC appends to a line of it: "Additional GRPC error information …" and
# ":UNKNOWN:Error received from peer  {…}". Threads write at once, so it may follow any line.
_CPP_DETAIL = re.compile(r"Additional GRPC error information|:[A-Z_]+:Error received from peer")
_COORDINATION = re.compile(r"coordination|distributed service|preemption_sync", re.IGNORECASE)
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's <sys/prctl.h>


def is_supervised() -> bool:
    """Tells whether this process was started by `supervise`; if so, it dies with its parent."""
    if os.environ.get(_PARENT) != str(os.getppid()):
        return False
    if sys.platform == "linux":
        # A killed parent would leave a worker that nobody watches, and that holds the run folder.
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    return True


def supervise(cluster: Cluster) -> int:
    """Runs this very command again as a child, and returns the status to exit with.

    Signals that ask to stop are passed on.

    Args:
      cluster: The processes of the run.
    """
    # The interpreter's own words: `-m jaxdpo.train`, or the path of the console script.
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_PARENT: str(os.getpid())},
        stderr=subprocess.PIPE,
        errors="replace",
    )

    def forward(number: int, frame: object) -> None:
        child.send_signal(number)

    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    assert child.stderr is not None
    log = _ErrorLog(child.stderr, lambda line: print(line, end="", file=sys.stderr, flush=True))
    status = child.wait()
    held = log.rest()
    message = _death(cluster, -status, held) if status < 0 else None
    if message is None:
        sys.stderr.write(held)
        return status if status >= 0 else 128 - status
    show(f"error: {message}", error=True)
    return _LOST if -status == signal.SIGABRT else 128 - status


class _ErrorLog:
    """The error output of the child, shown as it comes, but for the log of JAX's C++ threads.

    Args:
      stream: The output.
      show: Called with each line.
    """

    def __init__(self, stream: IO[str], show: Callable[[str], None]):
        self._held: list[str] = []
        self._thread = threading.Thread(target=self._pump, args=(stream, show), daemon=True)
        self._thread.start()

    def rest(self) -> str:
        """Returns what was held back, once the child is gone."""
        # A grandchild may hold the stream open.
        self._thread.join(2)
        return "".join(self._held)

    def _pump(self, stream: IO[str], show: Callable[[str], None]) -> None:
        fatal = False
        for line in stream:
            found = _CPP_LOG.match(line)
            # Behind a fatal line come its details and the stack, and then nothing more.
            fatal = fatal or (found is not None and line.startswith("F"))
            service = found is not None and _COORDINATION.search(line) is not None
            if fatal or service or _CPP_DETAIL.match(line):
                self._held.append(line)
            else:
                show(line)


def _death(cluster: Cluster, number: int, log: str) -> str | None:
    """Returns a message for a child that a signal ended, or None if its own output says more."""
    name = f"process {cluster.index} of {cluster.count}"
    if number == signal.SIGKILL:
        return (
            f"{name} was killed (SIGKILL). If nobody did, the machine ran out of memory: the "
            "kernel's log (dmesg) tells; lower batch.rows_per_device or use more machines. The "
            "next start continues from the last whole checkpoint"
        )
    if number != signal.SIGABRT or not _COORDINATION.search(log):
        return None
    where = f" at {cluster.address}" if cluster.address is not None else ""
    if "UNAVAILABLE" in log or "network issues" in log:
        what = (
            f"process 0{where} is gone: it failed, was killed, or its machine or the link to it is "
            "down; its own log tells more"
        )
    else:
        lost = sorted({int(found) for found in re.findall(r"task:(\d+)", log)} - {cluster.index})
        named = ", ".join(map(str, lost)) or "another one"
        what = f"JAX ended it, because process {named} is gone or was not heard of"
    return (
        f"{name} ended: {what}. Run the same command again on all of them: it continues from the "
        "last whole checkpoint"
    )

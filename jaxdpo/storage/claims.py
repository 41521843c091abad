"""Claims to pieces of work, as files that processes of any machine make in a folder they share.

Whoever takes a piece makes its file, which only one can, and touches it while at work. A claim that
is no longer touched is that of a process which died, and the work is taken over.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# Seconds between touches of a claim, and without one until it counts as left behind.
_TOUCH, _STALE = 2.0, 30.0


class Claims:
    """Claims to work, by this thread and by others anywhere."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, claim: Path) -> bool:
        """Claims some work by its file, if nobody is at it."""
        try:
            file = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return self._is_left(claim)
        with os.fdopen(file, "w", encoding="utf-8") as out:
            out.write(_own_name())
        return True

    def _is_left(self, claim: Path) -> bool:
        """Tells whether the process that made a claim is gone."""
        try:
            touched, name = claim.stat().st_mtime_ns, claim.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        host, _, pid = name.rpartition(" ")
        if host == socket.gethostname() and pid.isdecimal() and not _lives(int(pid)):
            claim.write_text(_own_name(), encoding="utf-8")
            return True
        # By the clock of this process alone: those of two machines differ.
        now = time.monotonic()
        before, since = self._seen.get(claim, (None, now))
        if before != touched:
            self._seen[claim] = (touched, now)
            return False
        # Should two take it over at once, both store the same.
        return now - since > _STALE


def _own_name() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


@contextlib.contextmanager
def touched(claim: Path) -> Iterator[None]:
    """Touches a claim while the block runs, and removes it then."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(_TOUCH):
            with contextlib.suppress(OSError):
                os.utime(claim)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        claim.unlink(missing_ok=True)

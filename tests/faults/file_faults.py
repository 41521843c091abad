"""Faults at file operations: the shared memory of file_faults.c, which counts and injects them."""

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Literal, get_args

Fault = Literal["kill", "torn", "ENOSPC", "EIO", "full"]
Signal = Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGTERM twice", "SIGINT twice"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
SIGNALS: tuple[Signal, ...] = get_args(Signal)
# Fault ↦ the mode in file_faults.c, and the errno that the operation fails with, or the signal.
_MODES: dict[Fault | Signal, tuple[int, int]] = {
    "kill": (1, 0),
    "torn": (2, 0),
    "ENOSPC": (3, errno.ENOSPC),
    "EIO": (3, errno.EIO),
    "full": (4, errno.ENOSPC),
    "SIGTERM": (5, signal.SIGTERM),
    "SIGINT": (5, signal.SIGINT),
    "SIGHUP": (5, signal.SIGHUP),
    "SIGTERM twice": (6, signal.SIGTERM),
    "SIGINT twice": (6, signal.SIGINT),
}
_SOURCE = Path(__file__).with_suffix(".c")


class _Control(ctypes.Structure):
    """The memory as file_faults.c lays it out."""

    _fields_ = [
        ("count", ctypes.c_long),
        ("at", ctypes.c_long),
        ("mode", ctypes.c_int),
        ("error", ctypes.c_int),
        ("folder", ctypes.c_char * 1024),
        ("log", ctypes.c_char * 1024),
    ]


def compiler() -> str | None:
    """Returns the C compiler that builds the library; None if there is none."""
    return shutil.which("gcc") or shutil.which("cc")


def build(folder: Path) -> dict[str, str]:
    """Compiles the library, and returns the environment in which processes have faults."""
    library, control = folder / "file_faults.so", folder / "control"
    found = compiler()
    assert found is not None, "needs a C compiler"
    words = [found, "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(words, check=True)
    control.write_bytes(bytes(ctypes.sizeof(_Control)))
    return {"LD_PRELOAD": str(library), "FAULTS_CONTROL": str(control)}


class FileFaults:
    """The faults of this process and its children, which `build` made the environment of."""

    def __init__(self) -> None:
        # Unbuffered and mapped: opening a file to map it is the last thing done through the
        # library that it controls.
        with open(os.environ["FAULTS_CONTROL"], "r+b", buffering=0) as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._control: Any = _Control.from_buffer(self._memory)

    def count(self, folder: Path, log: Path | None = None) -> None:
        """Begins to count the operations below a folder; none fails.

        Args:
          folder: The folder.
          log: Gets a line for each.
        """
        self._begin(folder, 0, (0, 0), log)

    def fail(self, folder: Path, at: int, fault: Fault | Signal) -> None:
        """Begins to count the operations below a folder, with a fault at the one numbered `at`.

        Args:
          folder: The folder.
          at: From 1.
          fault: kill and torn end the process, torn within a write; ENOSPC and EIO fail this one
            operation; full fails all from here on that need room. A signal is sent before the
            operation, which goes on; the second one three operations later.
        """
        self._begin(folder, at, _MODES[fault])

    def _begin(self, folder: Path, at: int, mode: tuple[int, int], log: Path | None = None) -> None:
        control = self._control
        # An empty folder counts nothing while the rest is set.
        control.folder = b""
        control.count, control.at, (control.mode, control.error) = 0, at, mode
        control.log = str(log or "").encode()
        control.folder = f"{folder}/".encode()

    def stop(self) -> int:
        """Counts no more; returns how many operations there were."""
        self._control.folder = b""
        return self._control.count

"""Many runs in one process: memory, descriptors, threads and temporary files must not grow."""

import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.commands import COMMANDS


class Held(NamedTuple):
    """Holds what a process holds.

    Attributes:
      mib: Resident memory.
      descriptors: Open files and sockets.
      threads: Of the operating system.
      temporary: Files in the folder for temporary ones.
    """

    mib: int
    descriptors: int
    threads: int
    temporary: int


def held() -> Held:
    """Measures this process, once everything that nobody refers to is gone."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return Held(
        int(kib) // 1024,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        len(os.listdir(tempfile.gettempdir())),
    )


def run_fits(count: int, inputs: Path, out: Path, same: bool) -> Iterator[Held]:
    """Runs one short run after the other; yields what the process holds after each.

    Args:
      count: How many.
      inputs: Folder of the inputs.
      out: Folder of the runs, each of which is removed.
      same: Whether all have the same shapes, or each another row length, as the runs of a notebook
        or of a suite of tests have: each of those compiles programs of its own.
    """
    import jaxdpo

    for index in range(count):
        words = COMMANDS["train"].words(inputs, out)
        if not same:
            words.append(f"batch.row_length={512 + 16 * index}")
        jaxdpo.fit(jaxdpo.load_config(words[0], words[1:]))
        shutil.rmtree(out / "run")
        yield held()


def soak(count: int, same: bool) -> int:
    """Runs so many fits, and shows what each adds; returns 1 if more than memory grows."""
    from tests.faults.commands import write_inputs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_inputs(folder / "inputs")
        begun, found = time.monotonic(), []
        for number, now in enumerate(run_fits(count, inputs, folder, same), start=1):
            found.append(now)
            took = time.monotonic() - begun
            print(f"fit {number}: {now}, {threading.active_count()} of Python's, {took:.0f} s")
    # The first ones load libraries and start pools of threads.
    settled, last = found[min(2, count - 1)], found[-1]
    fits = max(1, count - 1 - min(2, count - 1))
    print(f"{(last.mib - settled.mib) / fits:.1f} MiB a fit after the third")
    grown = [name for name in Held._fields[1:] if getattr(last, name) > getattr(settled, name) + 2]
    print(f"grown: {', '.join(grown) or 'nothing else'}")
    return 1 if grown else 0

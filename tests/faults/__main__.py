"""Breaks the program on purpose, and counts what holds: `python -m tests.faults KIND …`.

python -m tests.faults files --command train convert --sample 60
python -m tests.faults files --every --fault kill ENOSPC
python -m tests.faults files --command train --at 17 --fault EIO
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.commands import COMMANDS, write_inputs
from tests.faults.file_faults import FAULTS, build


def main() -> int:
    """Runs what the command line asks for; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    files = kinds.add_parser("files", help="a fault at a command's file operations")
    files.add_argument("--command", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    files.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    files.add_argument("--sample", type=int, default=20, help="trials drawn, over all commands")
    files.add_argument("--every", action="store_true", help="every fault at every operation")
    files.add_argument("--at", type=int, help="the operation of this number alone")
    files.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return {"files": fail_files}[given.kind](given)


def fail_files(given: argparse.Namespace) -> int:
    """Lets file operations fail; returns the exit status."""
    if "FAULTS_CONTROL" not in os.environ:
        return _again_with_faults()
    from tests.faults.file_faults import FileFaults
    from tests.faults.forks import import_everything
    from tests.faults.operations import Laboratory

    faults, rng = FileFaults(), random.Random(given.seed)
    import_everything([COMMANDS[name].module for name in given.command])
    work = Path(os.environ["FAULTS_CONTROL"]).parent
    inputs = write_inputs(work / "inputs")
    counts: Counter[str] = Counter()
    begun, bad = time.monotonic(), 0
    for index, name in enumerate(given.command):
        laboratory = Laboratory(name, inputs, work / name, faults)
        if given.at:
            trials = (laboratory.trial(given.at, fault) for fault in given.fault)
        elif given.every:
            trials = laboratory.every(given.fault)
        else:
            # The sample is parted among the commands, the first ones getting what does not divide.
            share = (given.sample + len(given.command) - 1 - index) // len(given.command)
            trials = laboratory.draw(share, given.fault, rng)
        print(f"{name}: {len(laboratory.operations)} operations", flush=True)
        for trial in trials:
            counts[trial.fault] += 1
            if trial.faults:
                bad += 1
                print(f"{name} {trial.fault} at {trial.at} ({trial.operation}):")
                print(*(f"    {fault}" for fault in trial.faults), sep="\n", flush=True)
    tried = ", ".join(f"{count} {fault}" for fault, count in counts.items())
    seconds = time.monotonic() - begun
    print(f"{sum(counts.values())} trials ({tried}): {bad} bad; {seconds:.0f} s")
    return 1 if bad else 0


def _again_with_faults() -> int:
    """Runs this command again in a process that has the library loaded from its start."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            **build(folder),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAXDPO_CACHE": str(folder / "cache"),
            # Compiled once, outside of where faults are, and found again by every trial.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        words = [sys.executable, *sys.orig_argv[1:]]
        process = os.spawnvpe(os.P_NOWAIT, words[0], words, environment)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    sys.exit(main())

"""Breaks the program on purpose, and counts what holds: `python -m tests.faults KIND …`.

python -m tests.faults files --command train convert --sample 60
python -m tests.faults files --every --fault kill ENOSPC
python -m tests.faults files --command train --at 17 --fault EIO
python -m tests.faults signals --command train prefer --sample 40
python -m tests.faults flips --sample 500
python -m tests.faults models --sample 500
python -m tests.faults soak --fits 15
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
from tests.faults.file_faults import FAULTS, SIGNALS, build


def main() -> int:
    """Runs what the command line asks for; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, faults, what in (
        ("files", FAULTS, "a fault at a command's file operations"),
        ("signals", SIGNALS, "a signal at a command's file operations"),
    ):
        each = kinds.add_parser(kind, help=what)
        each.add_argument("--fault", nargs="+", choices=faults, default=list(faults))
        each.add_argument("--command", nargs="+", choices=COMMANDS, default=list(COMMANDS))
        each.add_argument("--sample", type=int, default=20, help="trials drawn, over all commands")
        each.add_argument("--every", action="store_true", help="every fault at every operation")
        each.add_argument("--at", type=int, help="the operation of this number alone")
        each.add_argument("--seed", type=int, default=0)
    for kind, what in (("flips", "a bit of a file that is read back"), ("models", "model folders")):
        each = kinds.add_parser(kind, help=what)
        each.add_argument("--sample", type=int, default=100)
        each.add_argument("--seed", type=int, default=0)
    many = kinds.add_parser("soak", help="many runs in one process")
    many.add_argument("--fits", type=int, default=15)
    many.add_argument("--same", action="store_true", help="runs of the same shapes")
    given = parser.parse_args()
    if given.kind in ("files", "signals"):
        return try_operations(given)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if given.kind == "soak":
        from tests.faults.soak import soak

        return soak(given.fits, given.same)
    from tests.faults.damage import flip_bits, fuzz_models

    return (flip_bits if given.kind == "flips" else fuzz_models)(given.sample, given.seed)


def try_operations(given: argparse.Namespace) -> int:
    """Lets file operations fail, or sends signals at them; returns the exit status."""
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
            if counts.total() % 10 == 0:
                seconds = time.monotonic() - begun
                print(f"… {counts.total()} trials, {bad} bad, {seconds:.0f} s", flush=True)
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

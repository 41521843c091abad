"""Trials: a run of two hosts meets a fate, ends within its limit, and is continued bit for bit.

    python -m tests.devices.fates --trials 100

prints a table. As root each process has a network of its own, joined by a pair of virtual cables
that one of the fates cuts; elsewhere both share the loopback, and that fate is left out.
"""

import argparse
import contextlib
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.devices.network import Network, network
from tests.devices.processes import Process, free_port, launched
from tests.run_configs import write_inputs
from tests.runs.test_interruptions import command, environment, metrics

# Seconds from the fate to the end of both processes.
LIMIT = 15
STEPS = 20


@dataclass
class Row:
    """The outcome of the trials of one fate."""

    seconds: list[float] = field(default_factory=list)
    late: int = 0
    statuses: set[tuple[int, ...]] = field(default_factory=set)
    unnamed: int = 0


@contextlib.contextmanager
def running(
    inputs: Path, run: Path, hosts: Network | None, sequential: int
) -> Iterator[list[Process]]:
    """Starts the two processes of the run."""
    words = command(inputs, run, "mesh.data=2", "mesh.fsdp=2", "batch.row_length=400")
    port = free_port()
    started = []
    for number in range(2):
        variables = launched(number, 2, port) | environment(inputs, devices=2)
        prefix: list[str] = []
        if hosts is not None:
            variables["JAX_COORDINATOR_ADDRESS"] = f"{hosts.address}:{port}"
            prefix = hosts.prefix(number)
        log = run.parent / f"{sequential}.{number}.log"
        started.append(Process([*prefix, *words], variables, log))
    try:
        yield started
    finally:
        for each in started:
            each.end()


def meet(fate: str, target: int, started: list[Process], hosts: Network | None) -> list[int]:
    """Brings a fate about; returns the numbers of the processes that have to end."""
    if fate == "cut":
        assert hosts is not None
        hosts.cut()
        return [0, 1]
    number = getattr(signal, f"SIG{fate}")
    started[target].signal(number, worker=fate in ("KILL", "STOP"))
    return [1 - target] if fate == "STOP" else [0, 1]


def trial(inputs: Path, run: Path, hosts: Network | None, number: int, fate: str, row: Row) -> None:
    """Starts the run, from its last checkpoint, and ends it by a fate after some steps."""
    rng = random.Random(number)
    records, target = run / "metrics.jsonl", rng.randrange(2)
    before = last_step(records)
    goal = min(before + rng.randint(1, 6), STEPS - 3)
    with running(inputs, run, hosts, number) as started:
        until = time.monotonic() + 300
        while last_step(records) < goal and all(each.runs for each in started):
            assert time.monotonic() < until, started[0].output
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        assert all(each.runs for each in started), started[0].output + started[1].output
        start = time.monotonic()
        ending = meet(fate, target, started, hosts)
        statuses = []
        for each in ending:
            try:
                statuses.append(started[each].status(max(0.1, LIMIT + start - time.monotonic())))
            except AssertionError:
                statuses.append(-1)
        row.seconds.append(time.monotonic() - start)
        row.late += -1 in statuses
        row.statuses.add(tuple(statuses))
        said = [started[each].output for each in ending]
        row.unnamed += any(
            re.search(r"process \d|SIG\w+ to process", text) is None or "Check failure" in text
            for text in said
        )
    if fate == "cut":
        assert hosts is not None
        hosts.mend()


def last_step(records: Path) -> int:
    if not records.exists():
        return 0
    found = re.findall(r'^\{"step": (\d+), "split": "TRAIN"', records.read_text(), re.MULTILINE)
    return int(found[-1]) if found else 0


def finish(inputs: Path, run: Path, hosts: Network | None, number: int) -> None:
    with running(inputs, run, hosts, number) as started:
        statuses = [each.status(600) for each in started]
        assert statuses == [0, 0], "\n".join(each.output for each in started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--loopback", action="store_true", help="without networks of their own")
    given = parser.parse_args()
    fates = ["TERM", "INT", "HUP", "KILL", "STOP"]
    with contextlib.ExitStack() as held:
        hosts = None
        if not given.loopback:
            hosts = held.enter_context(network())
            fates.append("cut")
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        inputs = write_inputs(folder / "inputs", 100, test=8)
        whole = folder / "whole" / "run"
        whole.parent.mkdir()
        finish(inputs, whole, hosts, 0)
        rows, equal, runs = {fate: Row() for fate in fates}, 0, 0
        # Several trials fit into one run, each continuing it.
        for first in range(0, given.trials, 4):
            run = folder / f"run{first}" / "run"
            run.parent.mkdir()
            for number in range(first, min(first + 4, given.trials)):
                fate = fates[number % len(fates)]
                trial(inputs, run, hosts, number, fate, rows[fate])
            finish(inputs, run, hosts, given.trials + first)
            runs += 1
            model = "model/model.safetensors"
            equal += (run / model).read_bytes() == (whole / model).read_bytes() and metrics(
                run
            ) == metrics(whole)
        print("| fate | trials | longest end, s | over 15 s | exit statuses | without a name |")
        print("|---|---|---|---|---|---|")
        for fate, row in rows.items():
            if row.seconds:
                print(
                    f"| {fate} | {len(row.seconds)} | {max(row.seconds):.1f} | {row.late} | "
                    f"{sorted(row.statuses)} | {row.unnamed} |"
                )
        print(f"{equal} of {runs} runs ended bit for bit as the uninterrupted one")


if __name__ == "__main__":
    main()

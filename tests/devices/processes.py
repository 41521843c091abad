"""Starts the processes of a run on this machine, and reads what became of them."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

PROJECT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launched(number: int, count: int, port: int) -> dict[str, str]:
    """The environment of process `number` of `count`, with one device."""
    return os.environ | {
        "PYTHONPATH": str(PROJECT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


class Process:
    """One process and its output, which goes to a file and not a pipe: nobody has to read it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path):
        self.log = log
        with open(log, "w") as file:
            self._popen = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def worker(self) -> int:
        """The process that computes: a child of the one that was started."""
        path = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children")
        return int(path.read_text().split()[0])

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: int, worker: bool = False) -> None:
        os.kill(self.worker if worker else self._popen.pid, number)

    def wait_for(self, pattern: str, limit: float = 120) -> None:
        """Waits until the output holds a pattern."""
        until = time.monotonic() + limit
        while re.search(pattern, self.output) is None:
            assert self._popen.poll() is None, f"ended without {pattern!r}:\n{self.output}"
            assert time.monotonic() < until, f"no {pattern!r} in {limit} s:\n{self.output}"
            time.sleep(0.02)

    def status(self, limit: float) -> int:
        """Waits for the end; fails after the limit, in seconds."""
        try:
            return self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit} s:\n{self.output}") from None

    def end(self) -> None:
        if self._popen.poll() is None:
            # A stopped worker dies of SIGKILL too, with its parent.
            self._popen.kill()
            self._popen.wait()


@contextlib.contextmanager
def processes(
    folder: Path,
    commands: Sequence[Sequence[str]],
    count: int | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Process]]:
    """Starts a command for each process; whatever still runs at the end of the block is killed."""
    port, count = free_port(), count or len(commands)
    started = [
        Process(command, {**launched(number, count, port), **more}, folder / f"{number}.log")
        for number, command in enumerate(commands)
    ]
    try:
        yield started
    finally:
        for each in started:
            each.end()


def assert_no_stack(process: Process) -> None:
    """Checks that nothing of JAX's C++ log, and no Python traceback, reached the user."""
    for sign in ("Check failure", "coordination_service", "Traceback", "absl::"):
        assert sign not in process.output, process.output


def worker_command(options: str) -> list[str]:
    return [sys.executable, "-m", "tests.devices.worker", options]

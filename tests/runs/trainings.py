"""Trainings as processes that can be killed, forked from one that has imported everything.

`python -m tests.runs.trainings` imports what `python -m jaxdpo.train` does, and starts no backend
of JAX. It reads a request a line, as JSON, and answers each with a line:

    {"words": […], "environment": {…}, "log": "…"}    forks a process that runs the command on the
                                                      words, and prints its process id
    process id                                        prints its exit status once it has ended, and
                                                      null before

A start by itself spends five seconds on imports, and a test of interruptions makes many of them.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# What a run imports only once it is under way.
_LATER = (
    "jaxdpo.cli.ending",
    "jaxdpo.config",
    "jaxdpo.runs.fit",
    "jaxdpo.runs.processes",
    "jaxdpo.runs.sweep",
    "matplotlib.pyplot",
    "tensorboardX",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_fast",
)


class Training:
    """One process, and its output.

    Args:
      starter: What it is forked by.
      pid: Its number.
      log: The file of its output.
    """

    def __init__(self, starter: "Starter", pid: int, log: Path):
        self._starter, self._pid, self._log = starter, pid, log
        self._status: int | None = None

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def runs(self) -> bool:
        if self._status is None:
            self._status = self._starter.ask(self._pid)
        return self._status is None

    def signal(self, number: int) -> None:
        os.kill(self._pid, number)

    def status(self, limit: float = 300) -> int:
        """Waits for the end; returns the exit status, or less than 0 if a signal ended it."""
        until = time.monotonic() + limit
        while self.runs:
            assert time.monotonic() < until, f"still running after {limit} s:\n{self.output}"
            time.sleep(0.01)
        assert self._status is not None
        return self._status

    def end(self) -> None:
        if self.runs:
            self.signal(9)
            self.status()


class Starter:
    """Forks trainings.

    Args:
      process: `python -m tests.runs.trainings`.
    """

    def __init__(self, process: subprocess.Popen):
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: object) -> int | None:
        """Sends a request and returns the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Training:
        """Forks a training.

        Args:
          words: The words after `python -m jaxdpo.train`.
          environment: Variables to set.
          log: The file that its output goes to.
        """
        request = {"words": list(words), "environment": dict(environment), "log": str(log)}
        pid = self.ask(request)
        assert pid is not None
        return Training(self, pid, log)


@contextlib.contextmanager
def starting(environment: Mapping[str, str]) -> Iterator[Starter]:
    """Starts what forks, with these variables set, and ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runs.trainings"],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Starter(process)
    finally:
        process.kill()
        process.communicate()


def _child(request: dict) -> int:
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["jaxdpo.train", *request["words"]]

    from jaxdpo.cli.command import run_command
    from jaxdpo.train import main

    return run_command(main)


def serve() -> int:
    """Answers requests until the input ends; in a forked process, returns its exit status."""
    for name in _LATER:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        request, answer = json.loads(line), None
        if isinstance(request, int):
            found, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        elif (answer := os.fork()) == 0:
            return _child(request)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve())

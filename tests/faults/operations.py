"""Lets every file operation of a command fail, and looks at what comes of it.

A trial is the command with one fault, and then the same command again without. After a fault the
command must say so in one line and exit with a status that is not 0, unless the operation was one
that it can do without. After a signal it must say so too, and exit with the signal's status. The
second one must end as one without faults does, with nothing left over.
"""

import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.commands import COMMANDS
from tests.faults.file_faults import SIGNALS, Fault, FileFaults, Signal
from tests.faults.forks import finish, start
from tests.faults.outcome import differences, outcome


@dataclass(frozen=True)
class Trial:
    """One fault of one command, and what was wrong about it.

    Attributes:
      command: Name in `COMMANDS`.
      fault: The fault.
      at: The number of the operation.
      operation: The operation of that number, as it was when none failed.
      status: The exit status after the fault.
      faults: Everything that was wrong, a line each.
      said: The last lines of what the command said.
    """

    command: str
    fault: Fault | Signal
    at: int
    operation: str
    status: int
    faults: list[str] = field(default_factory=list)
    said: str = ""


class Laboratory:
    """Runs trials of one command.

    Args:
      name: Name in `COMMANDS`.
      inputs: Folder of the inputs.
      work: Folder that every trial begins with empty.
      faults: The faults of this process.
    """

    def __init__(self, name: str, inputs: Path, work: Path, faults: FileFaults):
        self._name, self._inputs, self._faults = name, inputs, faults
        self._out, self._output = work / "out", work / "output"
        work.mkdir(parents=True, exist_ok=True)
        log = work / "operations"
        log.unlink(missing_ok=True)
        self._fresh()
        faults.count(self._out, log)
        status = self._run()
        faults.stop()
        if status != 0:
            raise AssertionError(f"{name} fails without a fault: {self._said()}")
        self._expected = outcome(self._out)
        self.operations = [line.partition(" ")[2] for line in log.read_text().splitlines()]

    def draw(
        self, count: int, kinds: Sequence[Fault | Signal], rng: random.Random
    ) -> Iterator[Trial]:
        """Runs trials of random faults at random operations.

        Args:
          count: How many.
          kinds: The faults to draw from.
          rng: Where chance comes from.
        """
        for index in range(count):
            # One in each stretch of the numbers, so that few trials reach every phase.
            first = index * len(self.operations) // count
            last = max(first, (index + 1) * len(self.operations) // count - 1)
            yield self.trial(rng.randint(first, last) + 1, rng.choice(kinds))

    def every(self, kinds: Sequence[Fault | Signal]) -> Iterator[Trial]:
        """Runs a trial of every fault at every operation."""
        for at in range(1, len(self.operations) + 1):
            for fault in kinds:
                yield self.trial(at, fault)

    def trial(self, at: int, fault: Fault | Signal) -> Trial:
        """Runs one trial."""
        self._fresh()
        self._faults.fail(self._out, at, fault)
        status = self._run()
        reached = self._faults.stop() >= at
        said = self._said()
        trial = Trial(self._name, fault, at, self.operations[at - 1], status, said=said)
        if not reached:
            # Threads may do a few operations more or fewer; nothing has failed then.
            return trial
        trial.faults.extend(self._judged(status, fault))
        again = self._run()
        if again != 0:
            trial.faults.append(f"the same command again exits with {again}: {self._said()}")
        else:
            trial.faults.extend(differences(outcome(self._out), self._expected))
        return trial

    def _judged(self, status: int, fault: Fault | Signal) -> list[str]:
        if fault in ("kill", "torn"):
            return [] if status == -9 else [f"exits with {status}, though it was killed"]
        said = Path(f"{self._output}.err").read_text(errors="replace")
        found = []
        if fault in SIGNALS:
            # One that came after all was done, or while a thread of a library's ran, ends nothing.
            expected = 128 + signal.Signals[fault.partition(" ")[0]]
            if status not in (expected, 0):
                found.append(f"exits with {status}, not {expected}: {said[-600:]}")
            if "Traceback" in said or len(said.splitlines()) > 1:
                found.append(f"more than one line: {said[-1500:]}")
            return found
        if "Traceback" in said or "Error:" in said:
            found.append(f"a traceback: {said[-1500:]}")
        elif status != 0:
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            if len(lines) != 1:
                found.append(f"{len(lines)} lines of error: {said[-600:]}")
            if status != 2:
                found.append(f"exits with {status}")
        elif wrong := differences(outcome(self._out), self._expected):
            # It went on without what failed: then nothing may be missing but that.
            found.append(f"exits with 0, but {'; '.join(wrong)}")
        return found

    def _fresh(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()

    def _run(self) -> int:
        tried = COMMANDS[self._name]
        return finish(start(tried.module, tried.words(self._inputs, self._out), self._output))

    def _said(self) -> str:
        errors = Path(f"{self._output}.err").read_text(errors="replace").strip()
        return " | ".join(errors.splitlines()[-3:])[-700:]

"""Shows messages, tables, phases and progress: bars on a screen, lines in a log file."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdpo.cli.control_characters import plain
from jaxdpo.cli.progress import BAR_AFTER, Counting, spoken

_Result = TypeVar("_Result")
_SHOWN = ("loss", "rewards/margins", "rewards/accuracies")
# A run that says more than this before its first step says it about its data, line by line.
_MOST_KEPT = 200


# A function of one's own that is given each record of a run: `(step, split, metrics)`.
OnMetrics = Callable[[int, str, Mapping[str, float]], None]


class Reporter:
    """Messages and progress of one run.

    Args:
      quiet: Whether nothing is shown (in all processes of a run but the first).
      on_metrics: Given each record of the run's metrics, or None.

    Attributes:
      begun: When it was made.
      started: The same by the monotonic clock.
      said: The lines that were said, the first few hundred.
      phases: Name of a phase ↦ seconds that it took, all its times together.
    """

    def __init__(self, quiet: bool = False, on_metrics: OnMetrics | None = None):
        self.on_metrics = on_metrics
        self.console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self.begun = datetime.datetime.now().astimezone()
        self.started = time.monotonic()
        self.said: list[str] = []
        self.phases: dict[str, float] = {}
        self._name = ""

    def named(self, name: str) -> "Reporter":
        """Returns a reporter of one of several runs, whose lines begin with its name."""
        reporter = Reporter()
        reporter.console, reporter._name = self.console, name
        reporter.begun, reporter.started = self.begun, self.started
        # What was said and done before holds for all of them.
        reporter.said, reporter.phases = [*self.said], self.phases
        return reporter

    def say(self, text: str) -> None:
        """Shows a line of plain text."""
        if len(self.said) < _MOST_KEPT:
            self.said.append(text)
        # Rich reads [brackets] as markup; what users, files and models say is none.
        self.console.print(plain(f"{self._name}: {text}" if self._name else text))

    def seconds(self) -> float:
        """Returns the time since the command began."""
        return time.monotonic() - self.started

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Takes the time of the block, and says what is going on if it takes over two seconds.

        Args:
          what: Name of the phase: "loading the model".
        """
        begun = time.monotonic()
        # Said while it lasts, because a minute without a word looks like a program that hangs.
        timer = threading.Timer(BAR_AFTER, lambda: self.console.print(plain(f"{what} …")))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            took = time.monotonic() - begun
            self.phases[what] = self.phases.get(what, 0.0) + took
        if took >= BAR_AFTER:
            self.console.print(plain(f"{what}, {spoken(took)}"))

    def timed(self, what: str, work: Callable[[], _Result]) -> _Result:
        """Returns what a function returns, as a phase.

        Args:
          what: Name of the phase: "loading the model".
          work: The function.
        """
        with self.phase(what):
            return work()

    @contextmanager
    def progress(self, total: int, done: int) -> Iterator["StepProgress"]:
        """Shows the progress of the optimizer steps.

        Args:
          total: Steps of the run.
          done: Steps done before.
        """
        with Counting(self.console, "step", total, done, transient=False) as counting:
            yield StepProgress(counting)

    @contextmanager
    def counting(
        self, what: str, total: int
    ) -> Iterator[Callable[[Iterator[tuple[np.ndarray, Any]]], Iterator[tuple[np.ndarray, Any]]]]:
        """Yields a function that passes scores on, and shows a bar over their pairs meanwhile."""
        with self.bar(what, total) as advance:

            def counted(
                scores: Iterator[tuple[np.ndarray, Any]],
            ) -> Iterator[tuple[np.ndarray, Any]]:
                for indices, values in scores:
                    advance(len(indices))
                    yield indices, values

            yield counted

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Shows progress while the block runs; yields a function to call with the number done.

        Args:
          what: Name of the work.
          total: Number that there are.
          done: Number done before.
        """
        with self.phase(what), Counting(self.console, what, total, done) as counting:
            yield counting.advance

    @contextmanager
    def transfer(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Says what is done, and shows its bytes; yields a function to call with those done.

        Args:
          what: Name of the work.
          total: Bytes that there are.
        """
        self.say(what)
        with Counting(self.console, what, total, in_bytes=True) as counting:
            yield counting.advance

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Shows the TEST metrics after `step` steps."""
        self.say(f"step {step:>5}  TEST  {_line(metrics)}")

    def table(self, title: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        """Shows a table of text.

        Args:
          title: Line above it.
          header: Names of the columns.
          rows: Cells, a tuple for each row.
        """
        # Three columns hold texts of several lines each (a prompt and two answers), which only
        # lines between the rows keep apart.
        table = Table(title=plain(title), title_justify="left", show_lines=len(header) == 3)
        for name in header:
            table.add_column(plain(str(name)), overflow="fold")
        for row in rows:
            table.add_row(*(plain(str(cell)) for cell in row))
        self.console.print(table)


class StepProgress:
    """The progress of a run under way.

    Args:
      counting: Where it is shown.
    """

    def __init__(self, counting: Counting):
        self._counting = counting

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Shows a step's metrics."""
        speed = metrics.get("pairs_per_second")
        shown = _line(metrics) + (f"  {speed:.3g} pairs/s" if speed else "")
        self._counting.reach(step, shown)


def _line(metrics: dict[str, float]) -> str:
    names = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    shown = [name for name in _SHOWN if name in metrics]
    return "  ".join(f"{names.get(name, name)} {metrics[name]:.3f}" for name in shown)

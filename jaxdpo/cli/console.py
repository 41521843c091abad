"""Shows messages, tables and progress: bars in a terminal or notebook, lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from jaxdpo.cli.control_characters import visible

_SHOWN = ("loss", "rewards/margins", "rewards/accuracies")


def plain(text: str) -> str:
    """Returns text that rich and a terminal show as it stands: neither markup nor a command.

    >>> plain("[red] \\x1b[2J")
    '\\\\[red] \\\\x1b[2J'
    """
    return escape(visible(text))


class Reporter:
    """Messages and progress of one run.

    Args:
      quiet: Whether nothing is shown (in all processes of a run but the first).
    """

    def __init__(self, quiet: bool = False):
        self.console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self._name = ""

    def named(self, name: str) -> "Reporter":
        """Returns a reporter of one of several runs, whose lines begin with its name."""
        reporter = Reporter()
        reporter.console, reporter._name = self.console, name
        return reporter

    def say(self, text: str) -> None:
        """Shows a line of plain text."""
        # Rich reads [brackets] as markup; what users, files and models say is none.
        self.console.print(plain(f"{self._name}: {text}" if self._name else text))

    @contextmanager
    def progress(self, total: int, done: int) -> Iterator["StepProgress"]:
        """Shows a bar over the optimizer steps."""
        columns = (
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as bars:
            yield StepProgress(bars, bars.add_task("", total=total, completed=done, metrics=""))

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
        """Shows a bar while the block runs; yields a function to call with the number done.

        Args:
          what: Name of the bar.
          total: Number that there are.
          done: Number done before.
        """
        columns = (TextColumn(what), BarColumn(bar_width=10), MofNCompleteColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True
        ) as bars:
            task = bars.add_task("", total=total, completed=done)
            yield lambda count: bars.advance(task, count)

    @contextmanager
    def transfer(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Says what is done, with a bar over bytes; yields a function to call with those done."""
        self.say(what)
        columns = (BarColumn(bar_width=10), DownloadColumn(), TransferSpeedColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True
        ) as bars:
            task = bars.add_task("", total=total)
            yield lambda done: bars.advance(task, done)

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
        table = Table(title=title, title_justify="left", show_lines=len(header) == 3)
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(plain(str(cell)) for cell in row))
        self.console.print(table)


class StepProgress:
    """The bar of a run under way."""

    def __init__(self, bars: Progress, task: Any):
        self._bars, self._task = bars, task

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Shows a step's metrics."""
        speed = metrics.get("pairs_per_second")
        shown = _line(metrics) + (f"  {speed:.3g} pairs/s" if speed else "")
        self._bars.update(self._task, completed=step, metrics=shown)


def _line(metrics: dict[str, float]) -> str:
    names = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    shown = [name for name in _SHOWN if name in metrics]
    return "  ".join(f"{names.get(name, name)} {metrics[name]:.3f}" for name in shown)

"""Progress of work under way: a bar on a screen, a line a minute in a log file."""

import datetime
import importlib.util
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxdpo.cli.control_characters import plain

# Seconds. What is done sooner needs no bar, and a bar that flashes up only distracts.
BAR_AFTER = 2.0
# Seconds between lines of a log: often enough to see that it goes on, seldom enough to be read.
LINE_EVERY = 60.0


def is_live(console: Console) -> bool:
    """Tells whether what was drawn on a console can be drawn over."""
    if console.is_jupyter:
        # Without its widgets a notebook shows every state of a bar, one below the other.
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


def stamp() -> str:
    """Returns the local date and time, to the second."""
    return datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")


def spoken(seconds: float) -> str:
    """Writes a time as people say it.

    >>> spoken(0.41), spoken(12.3), spoken(252), spoken(7500)
    ('0.4 s', '12 s', '4 min 12 s', '2 h 05 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{minutes} min {rest:02d} s" if hours == 0 else f"{hours} h {minutes_left:02d} min"


class Counting:
    """Work that is counted, shown while the block runs once it takes longer than two seconds.

    Args:
      console: Where it is shown.
      what: Name of the work, and in a log of what is counted.
      total: How much there is.
      done: How much was done before.
      in_bytes: Whether bytes are counted.
      transient: Whether the bar goes when the work is done.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: int,
        done: int = 0,
        in_bytes: bool = False,
        transient: bool = True,
    ):
        self._console, self._what, self._total, self._done = console, what, total, done
        self._first, self._text = done, ""
        self._begun = self._last_line = time.monotonic()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._bar: Progress | None = None
        if is_live(console):
            columns = _columns(what, in_bytes)
            self._bar = Progress(
                *columns, console=console, transient=transient, refresh_per_second=4
            )
            self._task = self._bar.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            # By a timer and not at the next call: the first piece of work may be the longest.
            self._timer = threading.Timer(BAR_AFTER, self._start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._bar is not None:
                # A timer that fires now finds no bar to start.
                self._bar.stop()
                self._bar = None

    def _start(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.start()

    def advance(self, count: int) -> None:
        """Takes note of some more that is done."""
        self.reach(self._done + count, self._text)

    def reach(self, done: int, text: str) -> None:
        """Takes note of how much is done.

        Args:
          done: How much in all.
          text: What else there is to say of it, in a few words.
        """
        self._done, self._text = done, text
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=plain(text))
            return
        now = time.monotonic()
        if not is_live(self._console) and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self._console.print(plain(self.line(now)))

    def line(self, now: float) -> str:
        """Returns the line of a log.

        Args:
          now: By the monotonic clock.
        """
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        text = f"  {self._text}" if self._text else ""
        moved = self._done - self._first
        left = ""
        if moved > 0 and self._done < self._total:
            rest = (now - self._begun) / moved * (self._total - self._done)
            left = f"  about {spoken(rest)} left"
        return f"{stamp()}  {self._what} {self._done:,} of {self._total:,}{share}{text}{left}"


def _columns(what: str, in_bytes: bool) -> list[ProgressColumn]:
    bar = BarColumn(bar_width=10)
    if in_bytes:
        return [bar, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    text = TextColumn("{task.fields[text]}")
    return [TextColumn(plain(what)), bar, MofNCompleteColumn(), text, TimeRemainingColumn()]

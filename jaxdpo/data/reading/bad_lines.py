"""Refused lines on their way to the user: an error that names the first, or a file of them all."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from jaxdpo.data.bad_pair import BadLine
from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reports import tally
from jaxdpo.errors import UserError
from jaxdpo.storage.files import replacing

SHOWN_BAD_LINES = 20


class BadLines:
    """Refused lines as they are met: counted, the first of them kept, all of them written.

    Attributes:
      counts: How many there are of each code.
      first: The first 20.
    """

    def __init__(self, file: IO[str] | None = None):
        """Begins with none.

        Args:
          file: Where each is written, as a line of JSON.
        """
        self.counts: Counter[str] = Counter()
        self.first: list[BadLine] = []
        self._file = file

    def add(self, bad: BadLine) -> None:
        """Takes note of one."""
        # A file of a million bad lines is counted in memory and written to disk, never held.
        self.counts[bad.code] += 1
        if len(self.first) < SHOWN_BAD_LINES:
            self.first.append(bad)
        if self._file is not None:
            self._file.write(json.dumps(vars(bad), ensure_ascii=False) + "\n")

    def stop(self, config: DataConfig) -> None:
        """Raises if there are any and the configuration says to stop at them.

        Raises:
          UserError: The first 20 of them, and how many more there are.
        """
        total = self.counts.total()
        if config.on_error == "skip" or not total:
            return
        # Those shown are counted off, so that the rest is told by its kinds.
        shown = [str(bad) for bad in self.first]
        rest = self.counts - Counter(bad.code for bad in self.first)
        if rest:
            shown.append(f"and {rest.total()} more ({tally(rest)})")
        shown.append(f"{total} bad lines; fix them, or set data.on_error=skip to train on the rest")
        raise UserError("\n".join(shown))


def handle_bad_lines(
    bad_lines: Iterable[BadLine], config: DataConfig, rejects_path: Path | None = None
) -> None:
    """Stops at bad lines, or writes them to a file, as the configuration says.

    Args:
      bad_lines: The bad lines.
      config: Whether they stop the run.
      rejects_path: The file, if any.

    Raises:
      UserError: With `on_error="stop"`: the first 20 of them, and how many more there are.
    """
    if config.on_error == "skip" and rejects_path is not None:
        with replacing(rejects_path) as file:
            met = BadLines(file)
            for bad in bad_lines:
                met.add(bad)
        return
    met = BadLines()
    for bad in bad_lines:
        met.add(bad)
    met.stop(config)


def read_rejects(path: Path) -> Iterable[BadLine]:
    """Reads the refused lines of a file that `BadLines` wrote."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield BadLine(**json.loads(line))

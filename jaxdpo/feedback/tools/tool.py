"""The shape of a reader of one tool's exports."""

from collections.abc import Iterable
from typing import Any

from jaxdpo.data.bad_pair import BadLine
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.data.reading.sources import Source, read_source
from jaxdpo.feedback.turns import Derived


class Tool:
    """Reads one tool's exports; made anew for each collection, since it may remember lines."""

    def records(self, path: str) -> Iterable[Record | BadLine]:
        """Yields the lines of a file: of JSON Lines, of a JSON array, or of a table."""
        return read_source(Source(path))

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Returns the feedback of one line, as records of the sources.

        Raises:
          BadPair: If the line is not as the tool writes it.
          NoPair: If it says nothing about which answer is better.
        """
        raise NotImplementedError

    def finish(self) -> Iterable[Derived | tuple[str, str]]:
        """Yields what all lines say together, or (place, reason's code) where that is nothing."""
        return ()

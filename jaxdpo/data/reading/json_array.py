"""A file that is one JSON array of records, read an element at a time."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.reading.jsonl import MAX_LINE_BYTES, Record, parse_line
from jaxdpo.errors import UserError

_CHUNK = 2**20
_SPACE = b" \t\r\n"
_DEPTH = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}
# A whole string, an unfinished one, or a character that parts elements.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)


def read_array(stream: BinaryIO, file: str) -> Iterator[Record | BadLine]:
    """Yields every element of a JSON array, parsed or refused, by the line that it begins on.

    Elements are parted by their brackets and strings and then read as strictly as lines of JSONL.

    Args:
      stream: The file, opened in binary mode.
      file: Its name, for messages.

    Raises:
      UserError: If the array itself is damaged: cut off, or followed by something.
    """
    for line, raw in _elements(stream, file):
        try:
            yield Record(line, parse_line(raw), raw)
        except BadPair as bad:
            yield bad_line(file, line, bad, raw)


def _elements(stream: BinaryIO, file: str) -> Iterator[tuple[int, bytes]]:
    """Yields the bytes of each element, without the space around it, and the line it begins on."""
    # An empty array has nothing between its brackets; after a comma nothing is a mistake.
    before = b"["
    for line, text, after in _parts(stream, file):
        element = text.strip(_SPACE)
        begins = line + _breaks_before(text)
        if after == b"}":
            raise _damaged(file, begins, "a bracket is closed that was never opened")
        if element:
            yield begins, element
        elif b"," in (before, after):
            raise _damaged(file, begins, "an element is missing before or after a comma")
        before = after


def _parts(stream: BinaryIO, file: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Yields what stands between the array's own commas, its line, and what ends it."""
    # Elements are found by brackets alone and parsed one by one, so that an array of any size is
    # read in the memory of its longest element, and a bad element does not hide the good ones.
    text = stream.read(_CHUNK)
    start = text.index(b"[") + 1
    line = 1 + text.count(b"\n", 0, start)
    scanned, depth = start, 0
    while depth >= 0:
        for token in _TOKEN.finditer(text, scanned):
            # Group 1 is the closing quote.
            if token[1] == b"":
                # The string goes on in the next chunk.
                break
            scanned = token.end()
            depth += _DEPTH.get(token[0], 0)
            if depth < 0 or (depth == 0 and token[0] == b","):
                part = text[start : token.start()]
                yield line, part, token[0]
                line += part.count(b"\n")
                start = scanned
            if depth < 0:
                break
        if depth >= 0:
            # What is scanned of an unfinished element is not scanned again.
            text, scanned, start = text[start:], scanned - start, 0
            text += _more(stream, file, line, len(text))
    _check_end(stream, file, line, text[start:])


def _more(stream: BinaryIO, file: str, line: int, held: int) -> bytes:
    if held > MAX_LINE_BYTES:
        limit = MAX_LINE_BYTES // 2**20
        raise _damaged(file, line, f"an element is over {limit} MiB long, or a string never ends")
    more = stream.read(_CHUNK)
    if not more:
        raise _damaged(file, line, "the array is cut off after here")
    return more


def _check_end(stream: BinaryIO, file: str, line: int, rest: bytes) -> None:
    while rest:
        if rest.strip(_SPACE):
            raise _damaged(file, line + _breaks_before(rest), "something follows the array")
        line += rest.count(b"\n")
        rest = stream.read(_CHUNK)


def _breaks_before(text: bytes) -> int:
    return text[: len(text) - len(text.lstrip(_SPACE))].count(b"\n")


def _damaged(file: str, line: int, what: str) -> UserError:
    return UserError(f"{file}:{line}: {what}; fix the JSON array, or write one object a line")

"""From the bytes of a JSONL file to one `dict` a line, read exactly or refused with the reason.

`json.loads` accepts much that is no JSON, or not one value: duplicate keys (the last wins), NaN,
lone surrogates. Text readers split lines at U+2028 and hold a whole line in memory, however long.
Here a line ends at the byte `\\n` and nowhere else, and what is ambiguous is refused.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, Protocol

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line, kind, show

MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 64
_BOM = b"\xef\xbb\xbf"
# Possessive, and the closing quote optional: linear in time on any bytes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[{}\[\]]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Record(NamedTuple):
    """One line of a file as it was parsed.

    Attributes:
      line: Its number, from 1.
      value: The JSON object; None on a blank line.
      raw: The line's bytes, without its end.
    """

    line: int
    value: dict[str, Any] | None
    raw: bytes


class Lines(Protocol):
    """A stream of lines."""

    def readline(self, size: int, /) -> bytes:
        """Reads to the end of the line, or as many bytes as `size`."""
        ...


def read_records(stream: Lines, file: str, first: int = 1) -> Iterator[Record | BadLine]:
    """Yields every line of a JSONL stream, parsed or refused, in order.

    Args:
      stream: The file, opened in binary mode.
      file: Its name, for messages.
      first: The number of the first line, where the stream begins in the middle of the file.

    Yields:
      A `Record` for each line that holds one JSON object or is blank, a `BadLine` for every other.
    """
    for number, (raw, whole) in enumerate(_lines(stream, first == 1), start=first):
        try:
            if not whole:
                limit = MAX_LINE_BYTES // 2**20
                raise BadPair(
                    "line-too-long",
                    f"the line is longer than {limit} MiB; put each pair on a line of its own",
                )
            yield Record(number, parse_line(raw) if raw.strip(b" \t\r") else None, raw)
        except BadPair as bad:
            yield bad_line(file, number, bad, raw)


def _lines(stream: Lines, first: bool) -> Iterator[tuple[bytes, bool]]:
    """Yields lines without their end, and whether each is whole; holds one line's limit at most.

    Args:
      stream: The lines.
      first: Whether the first of them is the file's.
    """
    while line := stream.readline(MAX_LINE_BYTES + 1):
        # One byte more than is allowed was asked for, so a line of just that length is whole.
        whole = len(line) <= MAX_LINE_BYTES or line.endswith(b"\n")
        if not whole:
            # The rest is passed over a MiB at a time: a file without line breaks costs no memory.
            while (rest := stream.readline(2**20)) and not rest.endswith(b"\n"):
                pass
        # Windows' editors begin a file with a BOM; anywhere else it is a character.
        if first:
            line = line.removeprefix(_BOM)
            first = False
        yield line.removesuffix(b"\n").removesuffix(b"\r"), whole


def parse_line(line: bytes) -> dict[str, Any]:
    """Parses one line as one JSON object, strictly.

    Example: `parse_line(b'{"a": 1, "a": 2}')` raises `BadPair` with code `duplicate-key`.

    Args:
      line: The line's bytes, without its end.

    Raises:
      BadPair: If the line is anything but one JSON object (RFC 8259) in UTF-8 with unique keys,
        finite numbers, no NUL, no lone surrogate, and at most 64 levels.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise BadPair(
            "invalid-utf8",
            f"byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8",
        ) from None
    # JSON escapes NUL; a raw one comes from a disk that was full or a machine that went down.
    if b"\0" in line:
        raise BadPair("nul", "the line holds a NUL byte; the file is damaged or is not text")
    _check_depth(line)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _explain(text, error) from None
    if not isinstance(value, dict):
        raise BadPair(
            "not-an-object",
            f"the line holds {kind(value)}, not an object; write one JSON object a line",
        )
    # Most lines have no such escape, so most are not walked.
    if b"\\u" in line:
        _check_characters(value)
    return value


def _explain(text: str, error: json.JSONDecodeError) -> BadPair:
    # The parser says where it stopped; people need to know which mistake that usually is.
    column = error.pos + 1
    if error.msg == "Extra data":
        rest = text[error.pos :]
        if rest.startswith("{"):
            return BadPair(
                "two-objects",
                f"a second object starts at column {column}; put each pair on a line of its own",
            )
        return BadPair(
            "extra-data", f"text after the object at column {column}: {show(rest)}; remove it"
        )
    if text.startswith("\ufeff"):
        return BadPair(
            "bad-json",
            "a BOM (U+FEFF) stands before the object; only a file may begin with one: remove it",
        )
    if text.lstrip().startswith("[") or text.strip() in ("{", "}", "},", "]"):
        return BadPair(
            "bad-json",
            f"{error.msg} at column {column}; this looks like an indented file or a JSON array: "
            "write one JSON object a line",
        )
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return BadPair(
            "cut-off", f"the line ends before its object does (column {column}); write it whole"
        )
    return BadPair("bad-json", f"{error.msg} at column {column}; fix the JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # `json` keeps the last of two equal keys, so half of such a line would be lost without a word.
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise BadPair("duplicate-key", f"the key {show(twice)} stands twice; keep one")
    return value


def _not_finite(name: str) -> NoReturn:
    raise BadPair("not-finite", f"{name} is not JSON; write a number, null or a string")


def _finite(digits: str) -> float:
    # 1e999 is valid JSON and infinite as a float; a loss weight of that size would end a run.
    number = float(digits)
    if math.isinf(number):
        raise BadPair("not-finite", f"the number {show(digits)} is out of range")
    return number


def _integer(digits: str) -> int:
    # Python refuses to read more digits than this by default, with an error of its own.
    if len(digits) > 1000:
        raise BadPair("not-finite", f"an integer of {len(digits)} digits is out of range")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_constant=_not_finite,
    parse_float=_finite,
    parse_int=_integer,
)


def _check_depth(line: bytes) -> None:
    """Refuses deep nesting before the parser, which recurses, sees it."""
    # Counting brackets settles nearly every line, without looking where strings begin.
    if line.count(b"{") + line.count(b"[") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", line)):
        depth += 1 if bracket[0] in b"{[" else -1
        if depth > MAX_DEPTH:
            raise BadPair("too-deep", f"the line is nested over {MAX_DEPTH} levels; flatten it")


def _check_characters(value: dict[str, Any]) -> None:
    for path, text in strings(value):
        _check_text(path, text)


def _check_text(path: str, text: str) -> None:
    # Half a character cannot be encoded as UTF-8, and tokenizers fail on it one by one.
    if found := _SURROGATE.search(text):
        raise BadPair(
            "surrogate",
            f"{path} holds \\u{ord(found[0]):04x}, half a character; write the whole pair",
        )
    if "\0" in text:
        raise BadPair("nul", f"{path} holds \\u0000; remove it")


def check_value(value: Any, path: str = "", depth: int = 1) -> None:
    """Checks a row of a table as strictly as a line of text.

    Args:
      value: The row, or a value within it.
      path: Where the value stands in the row.
      depth: How deep.

    Raises:
      BadPair: If it holds what no JSON object does.
    """
    if depth > MAX_DEPTH:
        raise BadPair("too-deep", f"{path} is nested over {MAX_DEPTH} levels; flatten it")
    if isinstance(value, str):
        _check_text(path, value)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_value(item, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_value(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadPair("not-finite", f"{path} is {value}; write a number, null or a string")
    elif not isinstance(value, float | int | None):
        raise BadPair(
            "not-json", f"{path} is of type {type(value).__name__}; write text or a number"
        )


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields `(path, text)` for every string in a JSON value, the keys of objects included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            yield f"a key of {path or 'the line'}", key
            yield from strings(item, inner)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from strings(item, f"{path}[{index}]")

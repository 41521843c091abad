"""The reasons why one pair or one line of a file cannot be used."""

import json
from dataclasses import dataclass
from typing import Any

from jaxdpo.errors import UserError

KEPT_RAW_BYTES = 64 * 1024


class BadPair(UserError):
    """A pair that cannot be used: a stable short code, and a sentence with the remedy."""

    def __init__(self, code: str, reason: str):
        super().__init__(f"{reason} [{code}]")
        self.code = code
        self.reason = reason


class NothingToLearn(Exception):
    """A record that is well formed and yet teaches nothing, such as a tie: a stable short code."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class BadLine:
    """One refused line of a file.

    Attributes:
      file: The file, as the user named it.
      line: Its number, from 1.
      code: The kind of mistake, a stable short name.
      reason: What is wrong, with field and value, and the remedy.
      raw: The line itself (the first 64 KiB of it).
    """

    file: str
    line: int
    code: str
    reason: str
    raw: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason} [{self.code}]"


def bad_line(file: str, line: int, bad: BadPair, raw: bytes) -> BadLine:
    """Builds a refused line, with as much of its text as is kept.

    Args:
      file: The file, as the user named it.
      line: Its number, from 1.
      bad: Why it is refused.
      raw: The line's bytes.
    """
    kept = raw[:KEPT_RAW_BYTES].decode("utf-8", errors="replace")
    return BadLine(file, line, bad.code, bad.reason, kept)


def show(value: Any) -> str:
    """Returns a value as JSON, shortened for a message."""
    # Tables hold dates and numbers of types that JSON lacks; their text is enough for a message.
    text = json.dumps(value, ensure_ascii=False, default=str)
    # A surrogate cannot be printed; its escape can.
    text = text.encode("utf-8", errors="backslashreplace").decode()
    # Enough to find the place by; the line itself may have 16 MiB.
    return text if len(text) <= 60 else f"{text[:48]}… ({len(text)} characters)"


def kind(value: Any) -> str:
    """Names the sort of a JSON value, for a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")

"""Comma- and tab-separated tables: a row is a record, its cells are text, an empty cell is null."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line, show
from jaxdpo.data.reading.columns import spelled
from jaxdpo.data.reading.jsonl import MAX_LINE_BYTES, Record, check_value
from jaxdpo.data.reading.names import NAMES_OF, SCORE_PAIRS
from jaxdpo.errors import UserError

# A cell is text unless its column's name says that it is a number: "42" may be a question.
_NUMBERS = frozenset(
    [
        *(name for role in ("label", "score", "preferred") for name in NAMES_OF[role]),
        *(name for names in SCORE_PAIRS for name in names),
        *("margin", "labels", "score_a", "score_b", "score_0", "score_1", "score_2"),
        *("preference_strength", "overall_preference", "better_response_id", "safer_response_id"),
        *("winner_model_a", "winner_model_b", "winner_tie", "rating_a", "rating_b"),
    ]
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def read_csv(stream: BinaryIO, file: str, delimiter: str) -> Iterator[Record | BadLine]:
    """Yields every row of a table, by the line that it ends on.

    Args:
      stream: The file, opened in binary mode.
      file: Its name, for messages.
      delimiter: What stands between cells.

    Raises:
      UserError: If the first row does not name the columns, or the quotes are damaged.
    """
    # A cell may be as long as a line of JSON may be.
    csv.field_size_limit(MAX_LINE_BYTES)
    # `csv` must see line breaks as they are: a quoted cell may hold any.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        _check_names(names, file)
        for cells in rows:
            if cells:
                yield _record(names, cells, file, rows.line_num)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{file}:{rows.line_num}: {error}; put cells with quotes or line breaks in quotes, and "
            "double the quotes within"
        ) from None
    finally:
        # The stream is its opener's to close.
        text.detach()


def _check_names(names: list[str], file: str) -> None:
    if not all(name.strip() for name in names) or len(set(names)) < len(names):
        # pandas writes its index under an empty name.
        if names[:1] == [""] and len(set(names)) == len(names) and all(names[1:]):
            return
        raise UserError(
            f"{file}:1: the first row names the columns, and {show(names)} has one twice or empty"
        )


def _record(names: list[str], cells: list[str], file: str, line: int) -> Record | BadLine:
    raw = json.dumps(cells, ensure_ascii=False).encode("utf-8", "backslashreplace")
    try:
        if len(cells) != len(names):
            raise BadPair(
                "cells", f"the row has {len(cells)} cells, but there are {len(names)} columns"
            )
        # Tables of text have no null: an empty cell is a column that the record does not have.
        value = {
            name: _value(name, cell)
            for name, cell in zip(names, cells, strict=True)
            if cell and name
        }
        check_value(value)
    except BadPair as bad:
        return bad_line(file, line, bad, raw)
    return Record(line, value or None, raw)


def _value(name: str, cell: str) -> str | int | float:
    if spelled(name) in NAMES_OF["label"] and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if spelled(name) in _NUMBERS and _NUMBER.fullmatch(cell):
        return float(cell) if any(mark in cell for mark in ".eE") else int(cell)
    return cell

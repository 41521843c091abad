"""The rows of Parquet and Arrow tables as records.

A table's columns have types that JSON lacks. Where nothing reads such a column, it must not stop
anything: dates become text, decimals numbers, NaN null (which is what pandas means by it). Bytes
alone have no such value; they become an object that says how many there were, so that a column of
text or scores that holds them is refused by name.
"""

import datetime
import decimal
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.reading.jsonl import Record, check_value

# Rows that are held as Python objects at a time.
ROWS = 1024
_JSON_TYPES = (str, bool, int)


def records_of_rows(name: str, rows: Iterator[dict[str, Any]]) -> Iterator[Record | BadLine]:
    """Yields each row as a record, numbered from 1, or as a bad line.

    Args:
      name: The table's name, for messages.
      rows: The rows as Arrow makes Python objects of them.
    """
    for number, row in enumerate(rows, start=1):
        value = _jsonable(row)
        try:
            check_value(value)
            yield Record(number, value, b"")
        except BadPair as bad:
            yield bad_line(name, number, bad, str(row).encode("utf-8", "backslashreplace"))


def _jsonable(value: Any) -> Any:
    """Replaces what JSON lacks.

    Arrow writes a key that any row has into all rows: in an object, null stands for no such key.
    """
    # Most cells are text and whole numbers: `type` and not `isinstance`, for a column of a million.
    if value is None or type(value) in _JSON_TYPES:
        return value
    if isinstance(value, dict):
        return {key: made for key, item in value.items() if (made := _jsonable(item)) is not None}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": len(value)}
    if isinstance(value, decimal.Decimal):
        return _jsonable(float(value))
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    return {"type": type(value).__name__}


def parquet_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(Path(name).expanduser()) as file:
        # A few rows at a time: row groups of conversations are hundreds of megabytes.
        for batch in file.iter_batches(batch_size=ROWS):
            yield from batch.to_pylist()


def arrow_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of an Arrow file, or of an Arrow stream, which `datasets` writes."""
    with pa.memory_map(str(Path(name).expanduser())) as file:
        try:
            opened = pa.ipc.open_file(file)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                yield from batch.slice(start, ROWS).to_pylist()

"""Where records come from: a file of any of several kinds, a folder or glob of them, or the Hub."""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.reading.json_array import read_array
from jaxdpo.data.reading.jsonl import Record, check_value, read_records
from jaxdpo.errors import UserError, nearest
from jaxdpo.storage.files import file_digest, replacing, stamp_of

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow")
_PACKED = (".gz", ".zst")
_ROWS = 1024
# File systems tell times of change this much apart, at the coarsest.
_SETTLED_NS = 2 * 10**9
# What `datasets.save_to_disk` writes beside the data.
_NOT_DATA = ("dataset_info.json", "state.json", "dataset_dict.json")
_NOT_READ = {
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[^:/]*){0,2}")


class Source(NamedTuple):
    """One file, or one split of a data set on the Hub.

    Attributes:
      name: How it is named in messages: the path, or `org/name:config:split`.
      hub: Whether it is on the Hub.
    """

    name: str
    hub: bool = False


def find_sources(path: str) -> list[Source]:
    """The files that a path, folder or glob stands for, sorted by name, or the Hub's data set.

    Raises:
      UserError: If there are none.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        names = [str(each.relative_to(file)) for each in file.rglob("*") if each.is_file()]
        found = [Source(os.path.join(path, name)) for name in sorted(names) if _is_data(name)]
        if not found:
            raise UserError(
                f"{path}: is a folder without data files ({', '.join(SUFFIXES)}; plain, .gz, .zst)"
            )
        return found
    if file.exists():
        return [Source(path)]
    if glob.has_magic(path):
        found = sorted(filter(os.path.isfile, glob.glob(str(file), recursive=True)))
        if not found:
            raise UserError(f"{path}: no file is named like this; set data.path")
        return [Source(each) for each in found]
    if _HUB_NAME.fullmatch(path) and not file.parent.is_dir() and not _is_data(path):
        return [Source(path, hub=True)]
    beside = os.listdir(file.parent) if file.parent.is_dir() else []
    raise UserError(f"{path}: no such file{nearest(file.name, beside)}; set data.path")


def _is_data(name: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(name).parts)
    plain = name.removesuffix(_PACKED[0]).removesuffix(_PACKED[1])
    return not hidden and plain.endswith(SUFFIXES) and Path(name).name not in _NOT_DATA


def read_source(source: Source) -> Iterator[Record | BadLine]:
    """Yields every record of a source, parsed or refused, in order, holding few at a time.

    What a file is, is seen from its first bytes. A row of a table is a record that was parsed
    already; its number counts from 1.

    Raises:
      UserError: If the source cannot be read to its end.
    """
    if source.hub:
        rows = (row for batch in _hub_batches(source.name) for row in batch.to_pylist())
        yield from _rows(source.name, rows)
        return
    with _opened(source.name) as stream:
        start = stream.peek(16)[:16]
        if not start:
            raise UserError(f"{source.name}: is empty; write one pair a line")
        for magic, remedy in _NOT_READ.items():
            if start.startswith(magic):
                raise UserError(f"{source.name}: {remedy}")
        if start.startswith(b"PAR1"):
            yield from _rows(source.name, _parquet_rows(source.name))
        elif start.startswith(b"ARROW1") or source.name.endswith(".arrow"):
            yield from _rows(source.name, _arrow_rows(source.name))
        elif start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from read_array(cast(BinaryIO, stream), source.name)
        else:
            yield from read_records(cast(BinaryIO, stream), source.name)


def digest_of(source: Source, memory: Path) -> str:
    """SHA-256 of a source's content.

    Args:
      source: The source.
      memory: Folder that keeps the digests of files by name, size and time of change, so that a
        file that did not change is not read again.
    """
    if source.hub:
        state = hashlib.sha256()
        for batch in _hub_batches(source.name):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_table(batch)
            state.update(sink.getvalue())
        return state.hexdigest()
    file = Path(source.name).expanduser().resolve()
    note = memory / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    try:
        stamp = stamp_of(file)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            *known, digest = json.loads(note.read_text(encoding="utf-8"))
            if tuple(known) == stamp:
                return str(digest)
        digest = file_digest(file)
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read: {error.strerror}") from error
    # A file that was changed just now may change once more without getting another time.
    if time.time_ns() - stamp[1] > _SETTLED_NS:
        with contextlib.suppress(OSError):
            memory.mkdir(parents=True, exist_ok=True)
            with replacing(note) as out:
                json.dump([*stamp, digest], out)
    return digest


def raw_of(record: Record) -> bytes:
    """A record's text; a table's row as JSON."""
    return record.raw or json.dumps(record.value, ensure_ascii=False, default=str).encode()


@contextlib.contextmanager
def _opened(name: str) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked. What goes wrong while they are read is the user's to mend."""
    try:
        with open(Path(name).expanduser(), "rb") as file:
            start = file.peek(4)[:4]
            if start.startswith(b"\x1f\x8b"):
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), 2**20)
            elif start == b"\x28\xb5\x2f\xfd":
                unpacked = pa.CompressedInputStream(pa.PythonFile(file), "zstd")
                yield io.BufferedReader(cast(Any, unpacked), 2**20)
            else:
                yield file
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read to its end: {reason}") from error


def _rows(name: str, rows: Iterator[dict[str, Any]]) -> Iterator[Record | BadLine]:
    for number, row in enumerate(rows, start=1):
        value = {key: _without_nulls(item) for key, item in row.items() if item is not None}
        try:
            check_value(value)
            yield Record(number, value, b"")
        except BadPair as bad:
            yield bad_line(name, number, bad, str(row).encode("utf-8", "backslashreplace"))


def _without_nulls(value: Any) -> Any:
    """Arrow writes a key that any row has into all rows: there null stands for no such key."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _parquet_rows(name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(Path(name).expanduser()) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield from batch.to_pylist()


def _arrow_rows(name: str) -> Iterator[dict[str, Any]]:
    with pa.memory_map(str(Path(name).expanduser())) as file:
        try:
            opened = pa.ipc.open_file(file)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield from batch.slice(start, _ROWS).to_pylist()


def _hub_batches(name: str) -> Iterator[pa.Table]:
    """The rows of `org/name:config:split`, some at a time.

    Config and split may be left out where there is but one.
    """
    import datasets

    path, config, split = [*name.split(":"), "", ""][:3]
    try:
        found = datasets.load_dataset(path, config or None, split=split or None)
    except (OSError, ValueError, LookupError, ImportError, RuntimeError) as error:
        raise UserError(
            f"{name}: no such file, and the Hub's data set cannot be loaded: {error}"
        ) from error
    if isinstance(found, dict):
        if len(found) > 1:
            raise UserError(
                f"{name}: has the splits {', '.join(map(str, found))}; name one: "
                f"{path}:{config}:{next(iter(found))}"
            )
        found = next(iter(found.values()))
    yield from cast(Any, found).with_format("arrow").iter(batch_size=_ROWS)

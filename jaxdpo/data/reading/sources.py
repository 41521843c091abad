"""Sources of records: a file of any of several kinds, a folder or glob of them, or the Hub."""

import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from jaxdpo.data.bad_pair import BadLine
from jaxdpo.data.pairs import Split
from jaxdpo.data.reading.csv_table import read_csv
from jaxdpo.data.reading.json_array import read_array
from jaxdpo.data.reading.jsonl import Record, read_records
from jaxdpo.data.reading.splits import split_of_file
from jaxdpo.data.reading.tables import arrow_rows, parquet_rows, records_of_rows
from jaxdpo.errors import UserError, nearest
from jaxdpo.storage.buckets import fetch, is_bucket
from jaxdpo.storage.files import file_digest, replacing, stamp_of
from jaxdpo.storage.urls import refuse_url

_TEXT_TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", *_TEXT_TABLES)
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


class Part(NamedTuple):
    """Some lines of a JSONL file that follow one another.

    Attributes:
      start: The byte that the first of them begins at.
      stop: The byte behind the last one.
      first_line: The number of the first of them, from 1.
    """

    start: int
    stop: int
    first_line: int


class Source(NamedTuple):
    """One file, or one split of a data set on the Hub.

    Attributes:
      name: Its name in messages: the path, or `org/name:config:split`.
      hub: Whether it is on the Hub.
      named_split: The split that its name says. `split_of_sources` tells whether that counts.
      part: The lines that are meant, if not all.
    """

    name: str
    hub: bool = False
    named_split: Split | None = None
    part: Part | None = None


def find_sources(path: str) -> list[Source]:
    """Finds the files that a path, folder or glob stands for, by name, or the Hub's data set.

    Raises:
      UserError: If there are none.
    """
    if is_bucket(path):
        path = str(fetch(path))
    refuse_url(path)
    # What is on this machine goes before the Hub: a folder may be called like a data set there.
    file = Path(path).expanduser()
    if file.is_dir():
        names = [str(each.relative_to(file)) for each in file.rglob("*") if each.is_file()]
        found = [
            Source(os.path.join(path, name), named_split=split_of_file(name))
            for name in sorted(names)
            if _is_data(name)
        ]
        if not found:
            raise UserError(
                f"{path}: is a folder without data files ({', '.join(SUFFIXES)}; plain, .gz, .zst)"
            )
        return found
    if file.exists():
        return [Source(path, named_split=split_of_file(file.name))]
    if glob.has_magic(path):
        found = sorted(filter(os.path.isfile, glob.glob(str(file), recursive=True)))
        if not found:
            raise UserError(f"{path}: no file is named like this; set data.path")
        # Of the way to the first wildcard nothing is a name of a split.
        fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), file.parts))
        return [
            Source(each, named_split=split_of_file(os.path.relpath(each, Path(*fixed))))
            for each in found
        ]
    if _HUB_NAME.fullmatch(path) and not file.parent.is_dir() and not _is_data(path):
        return [Source(path, hub=True)]
    beside = os.listdir(file.parent) if file.parent.is_dir() else []
    raise UserError(f"{path}: no such file{nearest(file.name, beside)}; set data.path")


def splits_by_name(sources: Iterable[Source]) -> bool:
    """Tells whether files are TRAIN and TEST by their names.

    They are where one is named as a test and another is not. A file by itself, or shards that are
    all `train-…`, are split by the prompts' hashes as any other data.

    Args:
      sources: All sources of a run.
    """
    # With a test file there, hashing the others would take training data away for nothing.
    named = {source.named_split == "TEST" for source in sources if not source.hub}
    return named == {True, False}


def _is_data(name: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(name).parts)
    plain = _unpacked_name(name)
    return not hidden and plain.endswith(SUFFIXES) and Path(name).name not in _NOT_DATA


def _unpacked_name(name: str) -> str:
    return name.removesuffix(_PACKED[0]).removesuffix(_PACKED[1]).lower()


def read_source(source: Source) -> Iterator[Record | BadLine]:
    """Yields every record of a source, parsed or refused, in order, holding few at a time.

    What a file is, is seen from its first bytes. A row of a table is a record that was parsed
    already; its number counts from 1.

    Raises:
      UserError: If the source cannot be read to its end.
    """
    if source.hub:
        rows = (row for batch in _hub_batches(source.name) for row in batch.to_pylist())
        yield from records_of_rows(source.name, rows)
        return
    with _opened(source.name) as stream:
        if source.part is not None:
            lines = _Until(cast(BinaryIO, stream), source.part)
            yield from read_records(lines, source.name, source.part.first_line)
            return
        # Bytes tell what a file is better than its name does; only tables of text have no mark.
        start = stream.peek(16)[:16]
        if not start:
            raise UserError(f"{source.name}: is empty; write one pair a line")
        for magic, remedy in _NOT_READ.items():
            if start.startswith(magic):
                raise UserError(f"{source.name}: {remedy}")
        if start.startswith(b"PAR1"):
            yield from records_of_rows(source.name, parquet_rows(source.name))
        elif start.startswith(b"ARROW1") or source.name.endswith(".arrow"):
            yield from records_of_rows(source.name, arrow_rows(source.name))
        elif start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from read_array(cast(BinaryIO, stream), source.name)
        elif (delimiter := _TEXT_TABLES.get(Path(_unpacked_name(source.name)).suffix)) is not None:
            yield from read_csv(cast(BinaryIO, stream), source.name, delimiter)
        else:
            yield from read_records(cast(BinaryIO, stream), source.name)


class _Until:
    """The lines of a part."""

    def __init__(self, stream: BinaryIO, part: Part):
        stream.seek(part.start)
        self._stream, self._left = stream, part.stop - part.start

    def readline(self, size: int, /) -> bytes:
        line = self._stream.readline(min(size, self._left))
        self._left -= len(line)
        return line


def parts_of(source: Source, size: int) -> list[Source]:
    """Parts a JSONL file between lines, into parts of about so many bytes.

    Anything else is left whole: only where lines are records can one begin to read in the middle.

    Args:
      source: The file.
      size: Bytes of a part.
    """
    file = Path(source.name).expanduser()
    if source.hub or not file.name.endswith((".jsonl", ".ndjson")):
        return [source]
    whole = file.stat().st_size
    parts: list[Part] = []
    with open(file, "rb") as stream:
        # An array may have the name of lines, and a compressed file any name.
        if whole <= size or not stream.read(4).removeprefix(b"\xef\xbb\xbf").startswith(b"{"):
            return [source]
        stream.seek(0)
        start, line = 0, 1
        while start < whole:
            # The part's bytes but for the rest of its last line, of which there is none or one.
            held = stream.read(size)
            rest = stream.readline() if not held.endswith(b"\n") else b""
            stop = start + len(held) + len(rest)
            parts.append(Part(start, stop, line))
            line += held.count(b"\n") + rest.count(b"\n")
            start = stop
    return [source._replace(part=part) for part in parts]


def digest_of(source: Source, memory: Path) -> str:
    """Returns the SHA-256 of a source's content.

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
    # Hashing a million pairs takes seconds; a file's size and time of change tell that it is the
    # same without reading it.
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
    """Returns a record's text; a table's row as JSON."""
    return record.raw or json.dumps(record.value, ensure_ascii=False, default=str).encode()


@contextlib.contextmanager
def _opened(name: str) -> Iterator[io.BufferedReader]:
    """Opens the bytes of a file, unpacked; an error while they are read is the user's to fix."""
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


def _hub_batches(name: str) -> Iterator[pa.Table]:
    """Yields the rows of `org/name:config:split`, some at a time.

    Config and split may be left out where there is but one.
    """
    import datasets

    # Imported late: loading `datasets` takes longer than reading most files.
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

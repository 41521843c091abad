"""Tokenised pairs on disk: written once, read as they are needed, never used if damaged."""

import contextlib
import dataclasses
import hashlib
import json
import math
import mmap
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdpo.data.pairs import Message, TokenizedPair
from jaxdpo.data.reading.reports import TokenizeReport
from jaxdpo.errors import UserError
from jaxdpo.storage.files import file_digest, move_folder, stamp_of, sync_folder, sync_tree
from jaxdpo.storage.sealed import digest_without, read_sealed, sealed
from jaxdpo.storage.temporary import TemporaryFolder

# Part of every key: raise it when the files change their form.
FORMAT_VERSION = 8
ROWS_PER_CHUNK = 1024
_PAIRS, _ABOUT = "pairs.arrow", "about.json"
_IDS = TokenizedPair._fields
_SCORES = ("chosen_score", "rejected_score")
# A run answers a few prompts while it trains, and criteria read their messages. The messages of all
# pairs would double the size of the store.
KEPT_PROMPTS = 64
_SCHEMA = pa.schema(
    [
        *((name, pa.list_(pa.int32())) for name in _IDS),
        ("source", pa.string()),
        ("metadata", pa.string()),
        ("prompt", pa.string()),
        *((name, pa.float32()) for name in _SCORES),
        ("label", pa.int8()),
        ("checksum", pa.uint32()),
    ]
)

_NONE = np.zeros(0, np.int32)

Scores = tuple[float, float]
UNKNOWN = (math.nan, math.nan)
# What `labels` says of a pair, which has none.
NO_LABEL = -1


class TokenizedPairs(Sequence[TokenizedPair]):
    """Tokenised pairs by index, in the order of the file; the ids are read when they are asked for.

    What stands beside the ids is a memory map. The ids are not: every page that random access
    touches would count as this process's memory until the whole file did. Each pair is compared
    with its checksum whenever it is read.

    Attributes:
      lengths: i32 `[N, 3]`, tokens of prompt, chosen and rejected.
      scores: f32 `[N, 2]`, what chosen and rejected were given; NaN where the data does not say.
      labels: i8 `[N]`, 1 or 0 of an answer that was judged by itself, NO_LABEL of a pair.
      fingerprint: SHA-256 of all token ids, lengths, scores and labels: what training depends on.
      report: What was cut, dropped and refused on the way.
    """

    def __init__(self, path: Path, fingerprint: str, report: TokenizeReport):
        """Opens a file of `ROWS_PER_CHUNK` rows a chunk, the last one aside."""
        self._path, self._file = path, path.open("rb", buffering=0)
        mapped = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        table = pa.ipc.open_file(mapped).read_all()
        columns = [table.column(name).chunks for name in _IDS]
        # Of each chunk's ids: where each row begins and ends, and where the first is in the file.
        self._chunks = [
            [(c.offsets.to_numpy(), _address(c.values) - mapped.address) for c in chunks]
            for chunks in zip(*columns, strict=True)
        ]
        self._checksums = table.column("checksum").to_numpy()
        self._sources = table.column("source")
        self._metadata = table.column("metadata")
        self._prompts = table.column("prompt")
        self.lengths = np.empty((len(table), 3), np.int32)
        for start, chunk in zip(range(0, len(table), ROWS_PER_CHUNK), self._chunks, strict=True):
            for part, (offsets, _) in enumerate(chunk[:3]):
                np.subtract(
                    offsets[1:],
                    offsets[:-1],
                    out=self.lengths[start : start + ROWS_PER_CHUNK, part],
                )
        self.scores = np.stack([table.column(name).to_numpy() for name in _SCORES], -1)
        self.labels = table.column("label").to_numpy()
        self.fingerprint = fingerprint
        self.report = report

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedPair:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        # Chunks are of one size, so that the place of a row needs no search.
        chunk, row = divmod(index, ROWS_PER_CHUNK)
        pair = TokenizedPair(
            *(
                self._read(start, int(offsets[row]), int(offsets[row + 1]))
                for offsets, start in self._chunks[chunk]
            )
        )
        # Read from disk at every step: a flipped bit would train another token without a word.
        if _checksum(pair) != self._checksums[index]:
            # Without its description the folder does not count, and is made anew.
            with contextlib.suppress(OSError):
                self._path.with_name(_ABOUT).unlink()
            raise UserError(
                f"{self.source(index)}: its stored tokens are damaged on disk; removed them, so "
                "run the same command again, which makes them anew; if it happens again, check "
                "the disk"
            )
        return pair

    def _read(self, start: int, first: int, last: int) -> np.ndarray:
        """Reads the ids `first` to `last` of those that begin at a place in the file."""
        if last == first:
            return _NONE
        # pread moves no file position: many threads read through one descriptor.
        data = os.pread(self._file.fileno(), 4 * (last - first), start + 4 * first)
        # A file that was cut off gives fewer bytes, of which the checksum tells.
        return np.frombuffer(data, np.int32, len(data) // 4)

    def id_spans(self) -> list[tuple[int, int]]:
        """Returns where the ids of each chunk and column begin and end in the file, in order."""
        return sorted(
            (start + 4 * int(offsets[0]), start + 4 * int(offsets[-1]))
            for chunk in self._chunks
            for offsets, start in chunk
            if offsets[-1] > offsets[0]
        )

    def source(self, index: int) -> str:
        """Returns where the pair came from, as `file:line`."""
        return self._sources[index].as_py()

    def prompt(self, index: int) -> list[Message] | None:
        """Returns the messages of a prompt, kept for the first `KEPT_PROMPTS` pairs; else None."""
        kept = self._prompts[index].as_py()
        return None if kept is None else json.loads(kept)

    def metadata(self, index: int) -> dict[str, Any]:
        """Returns the pair's metadata.

        Where it has scores also `chosen_score`, `rejected_score` and `score_margin`, their
        difference.
        """
        chosen, rejected = map(float, self.scores[index])
        scores = dict(
            zip((*_SCORES, "score_margin"), (chosen, rejected, chosen - rejected), strict=True)
        )
        return ({} if math.isnan(chosen) else scores) | json.loads(self._metadata[index].as_py())


@dataclasses.dataclass(frozen=True)
class _About:
    """Description beside the pairs: their kind, and how to tell that they are whole.

    Attributes:
      key: What they were made from.
      digest: SHA-256 of their file.
      stamp: Size and time of change of their file when it was written; while the file has these,
        that digest is not computed again, for it takes as long as reading every id.
      id_spans: Where the ids lie in the file. Each pair's are compared with its own checksum
        whenever they are read.
      rest: SHA-256 of all else in the file: offsets, scores, labels, sources, metadata, prompts,
        checksums, and Arrow's own structure, which it follows without a doubt. Computed each time.
      fingerprint: As in `TokenizedPairs`.
      report: As in `TokenizedPairs`.
    """

    key: str
    digest: str
    stamp: tuple[int, int]
    id_spans: list[tuple[int, int]]
    rest: str
    fingerprint: str
    report: TokenizeReport


def open_pairs(folder: Path, key: str) -> TokenizedPairs | None:
    """Opens stored pairs if they are there, whole, and those that the key stands for."""
    about = _read_about(folder / _ABOUT)
    if about is None or about.key != key:
        return None
    try:
        file = folder / _PAIRS
        if stamp_of(file) != tuple(about.stamp) and file_digest(file) != about.digest:
            return None
        if digest_without(file, about.id_spans) != about.rest:
            return None
    except OSError:
        return None
    return TokenizedPairs(folder / _PAIRS, about.fingerprint, about.report)


def verify_pairs(folder: Path) -> bool:
    """Tells whether stored pairs are as they were written, every id of them."""
    about = _read_about(folder / _ABOUT)
    try:
        return about is not None and file_digest(folder / _PAIRS) == about.digest
    except OSError:
        return False


def _read_about(path: Path) -> _About | None:
    about = read_sealed(path)
    if about is None:
        return None
    report: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in about.pop("report").items()
    }
    return _About(report=TokenizeReport(**report), **about)


class PairWriter:
    """Writes tokenised pairs to a folder that appears, complete, when `finish` is called.

    Use as a context manager: what is not finished is removed.
    """

    def __init__(self, folder: Path, key: str):
        self._folder, self._key = folder, key
        self._place = TemporaryFolder(folder)
        self._temporary = self._place.path
        self._file = pa.OSFile(str(self._temporary / _PAIRS), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._hash = hashlib.sha256()
        self._waiting: list[tuple[TokenizedPair, str, str, str | None, Scores, int]] = []
        self._held: pa.Table | None = None
        self._count = self._written = 0

    def __enter__(self) -> "PairWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._place.close()

    def add(
        self,
        pair: TokenizedPair,
        source: str,
        metadata: dict[str, Any] | None = None,
        scores: Scores = UNKNOWN,
        label: bool | None = None,
        prompt: Sequence[Message] | None = None,
    ) -> None:
        """Adds one pair.

        Args:
          pair: Its token ids.
          source: Where it came from, as `file:line`.
          metadata: The record's own fields.
          scores: What chosen and rejected were given.
          label: Of an answer that was judged by itself.
        """
        judged = NO_LABEL if label is None else int(label)
        own = json.dumps(metadata, ensure_ascii=False) if metadata else "{}"
        kept = None
        if prompt is not None and self._count < KEPT_PROMPTS:
            kept = json.dumps(list(prompt), ensure_ascii=False)
        self._count += 1
        self._waiting.append((pair, source, own, kept, scores, judged))
        if len(self._waiting) == ROWS_PER_CHUNK:
            self._write_chunk()

    def append(self, folder: Path, key: str) -> TokenizeReport:
        """Adds all pairs that another writer stored.

        Args:
          folder: Where they are.
          key: What they were made from.

        Returns:
          What became of them there.

        Raises:
          UserError: If they are damaged.
        """
        about = _read_about(folder / _ABOUT)
        if about is None or about.key != key or file_digest(folder / _PAIRS) != about.digest:
            raise UserError(f"{folder}: is damaged; remove it, and run again")
        table = pa.ipc.open_file(pa.memory_map(str(folder / _PAIRS))).read_all()
        self._count += len(table)
        # Chunks are of one size, so what does not fill one waits for the pairs that follow.
        held = table if self._held is None else pa.concat_tables([self._held, table])
        for start in range(0, len(held) - ROWS_PER_CHUNK + 1, ROWS_PER_CHUNK):
            self._write_rows(held.slice(start, ROWS_PER_CHUNK))
        self._held = held.slice(len(held) - len(held) % ROWS_PER_CHUNK)
        return about.report

    def finish(self, report: TokenizeReport) -> None:
        """Puts the folder in its place, and removes a damaged one from there."""
        if self._waiting:
            self._write_chunk()
        if self._held is not None and len(self._held):
            self._write_rows(self._held)
        self._writer.close()
        self._file.close()
        # The digest is of the file as it lies on disk, read once while it is still cached.
        file = self._temporary / _PAIRS
        fingerprint = self._hash.hexdigest()
        spans = TokenizedPairs(file, fingerprint, report).id_spans()
        rest = digest_without(file, spans)
        about = _About(
            self._key, file_digest(file), stamp_of(file), spans, rest, fingerprint, report
        )
        text = sealed(dataclasses.asdict(about))
        (self._temporary / _ABOUT).write_text(text, encoding="utf-8")
        sync_tree(self._temporary)
        # Another process may have put the same pairs there in the meantime: they are as good.
        if open_pairs(self._folder, self._key) is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            move_folder(self._temporary, self._folder, last=[_ABOUT])
            sync_folder(self._folder.parent)

    def _write_rows(self, table: pa.Table) -> None:
        """Writes some rows that were stored before as a chunk."""
        columns: list[Any] = [table.column(name).combine_chunks() for name in _SCHEMA.names]
        for place, name in enumerate(_SCHEMA.names):
            if name in _IDS:
                # A slice shares the offsets of all rows that it was taken from.
                offsets = columns[place].offsets.to_numpy()
                values = columns[place].flatten()
                columns[place] = pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), values)
            elif name == "prompt":
                kept = max(0, min(len(table), KEPT_PROMPTS - self._written))
                prompts = columns[place].slice(0, kept).to_pylist()
                columns[place] = pa.array(prompts + [None] * (len(table) - kept), pa.string())
        self._write(columns)

    def _write_chunk(self) -> None:
        pairs, sources, metadata, prompts, scores, labels = zip(*self._waiting, strict=True)
        self._write(
            [
                *(_ragged([getattr(pair, name) for pair in pairs]) for name in _IDS),
                pa.array(sources),
                pa.array(metadata),
                pa.array(prompts, pa.string()),
                *(pa.array(given, pa.float32()) for given in zip(*scores, strict=True)),
                pa.array(labels, pa.int8()),
                pa.array([_checksum(pair) for pair in pairs], pa.uint32()),
            ]
        )
        self._waiting = []

    def _write(self, columns: list[Any]) -> None:
        """Writes a chunk, its columns in the order of the schema."""
        named = dict(zip(_SCHEMA.names, columns, strict=True))
        # Lengths as well as ids: the same ids may be parted in another way.
        for name in _IDS:
            self._hash.update(np.diff(named[name].offsets.to_numpy()).tobytes())
            self._hash.update(named[name].values.to_numpy().tobytes())
        for name in (*_SCORES, "label"):
            self._hash.update(named[name].to_numpy().tobytes())
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._written += len(columns[0])


def _address(values: pa.Array) -> int:
    """Returns where an array's numbers begin in memory; 0 where it has none, and none is read."""
    buffer = values.buffers()[1]
    return 0 if buffer is None else buffer.address + 4 * values.offset


def _checksum(pair: TokenizedPair) -> int:
    """Computes the CRC-32 of a pair's ids and spans."""
    value = 0
    for ids in pair:
        # One after the other, so that ids which move from one part to the next are seen.
        value = zlib.crc32(ids.data, value)
    return value


def _ragged(rows: Sequence[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))

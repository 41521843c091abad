"""Tokenised pairs on disk: written once, read by memory map, never used if damaged or another's."""

import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.data.records import BadLine
from jaxdpo.data.reports import TokenizeReport
from jaxdpo.files import file_digest, sync_folder, sync_tree

# Part of every key: raise it when the files change their form.
FORMAT_VERSION = 4
ROWS_PER_CHUNK = 1024
_PAIRS, _ABOUT = "pairs.arrow", "about.json"
_IDS = TokenizedPair._fields
_SCORES = ("chosen_score", "rejected_score")
_SCHEMA = pa.schema(
    [
        *((name, pa.list_(pa.int32())) for name in _IDS),
        ("source", pa.string()),
        ("metadata", pa.string()),
        *((name, pa.float32()) for name in _SCORES),
        ("label", pa.int8()),
    ]
)

Scores = tuple[float, float]
UNKNOWN = (math.nan, math.nan)
# What `labels` says of a pair, which has none.
NO_LABEL = -1


class TokenizedPairs(Sequence[TokenizedPair]):
    """Tokenised pairs by index, in the order of the file; the ids are views of a memory map.

    Attributes:
      lengths: i32 `[N, 3]`, tokens of prompt, chosen and rejected.
      scores: f32 `[N, 2]`, what chosen and rejected were given; NaN where the data does not say.
      labels: i8 `[N]`, 1 or 0 of an answer that was judged by itself, NO_LABEL of a pair.
      fingerprint: SHA-256 of all token ids, lengths, scores and labels: what training depends on.
      report: What was cut, dropped and refused on the way.
    """

    def __init__(self, table: pa.Table, fingerprint: str, report: TokenizeReport):
        """Wraps a table of `ROWS_PER_CHUNK` rows a chunk, the last one aside."""
        columns = [table.column(name).chunks for name in _IDS]
        self._chunks = [
            [(c.offsets.to_numpy(), c.values.to_numpy(zero_copy_only=True)) for c in chunks]
            for chunks in zip(*columns, strict=True)
        ]
        self._sources = table.column("source")
        self._metadata = table.column("metadata")
        self.lengths = np.concatenate(
            [np.zeros((0, 3), np.int32)]
            + [np.stack([np.diff(offsets) for offsets, _ in c[:3]], -1) for c in self._chunks]
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
        chunk, row = divmod(index, ROWS_PER_CHUNK)
        return TokenizedPair(
            *(values[offsets[row] : offsets[row + 1]] for offsets, values in self._chunks[chunk])
        )

    def source(self, index: int) -> str:
        """Where the pair came from, as `file:line`."""
        return self._sources[index].as_py()

    def metadata(self, index: int) -> dict[str, Any]:
        """The pair's metadata."""
        return json.loads(self._metadata[index].as_py())


@dataclasses.dataclass(frozen=True)
class _About:
    """What stands beside the pairs: what they are, and how to tell that they are whole."""

    key: str
    digest: str
    fingerprint: str
    report: TokenizeReport


def open_pairs(folder: Path, key: str) -> TokenizedPairs | None:
    """Opens stored pairs if they are there, whole, and those that the key stands for."""
    about = _read_about(folder / _ABOUT)
    if about is None or about.key != key:
        return None
    try:
        if file_digest(folder / _PAIRS) != about.digest:
            return None
    except OSError:
        return None
    table = pa.ipc.open_file(pa.memory_map(str(folder / _PAIRS))).read_all()
    return TokenizedPairs(table, about.fingerprint, about.report)


def _read_about(path: Path) -> _About | None:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        report: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in about.pop("report").items()
        }
        report["rejected"] = tuple(BadLine(**bad) for bad in report["rejected"])
        return _About(report=TokenizeReport(**report), **about)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


class PairWriter:
    """Writes tokenised pairs to a folder that appears, complete, when `finish` is called.

    Use as a context manager: what is not finished is removed.
    """

    def __init__(self, folder: Path, key: str):
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder, self._key = folder, key
        self._temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        self._file = pa.OSFile(str(self._temporary / _PAIRS), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._hash = hashlib.sha256()
        self._waiting: list[tuple[TokenizedPair, str, str, Scores, int]] = []

    def __enter__(self) -> "PairWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(
        self,
        pair: TokenizedPair,
        source: str,
        metadata: dict[str, Any] | None = None,
        scores: Scores = UNKNOWN,
        label: bool | None = None,
    ) -> None:
        """Adds one pair, where it came from, and what chosen and rejected were given."""
        judged = NO_LABEL if label is None else int(label)
        lengths = np.array([len(ids) for ids in pair])
        for numbers in (lengths, *pair):
            self._hash.update(numbers.astype("<i4").tobytes())
        self._hash.update(np.array(scores, "<f4").tobytes() + np.int8(judged).tobytes())
        own = json.dumps(metadata or {}, ensure_ascii=False)
        self._waiting.append((pair, source, own, scores, judged))
        if len(self._waiting) == ROWS_PER_CHUNK:
            self._write_chunk()

    def finish(self, report: TokenizeReport) -> None:
        """Puts the folder in its place, and removes a damaged one from there."""
        if self._waiting:
            self._write_chunk()
        self._writer.close()
        self._file.close()
        digest = file_digest(self._temporary / _PAIRS)
        about = _About(self._key, digest, self._hash.hexdigest(), report)
        text = json.dumps(dataclasses.asdict(about), indent=1)
        (self._temporary / _ABOUT).write_text(text, encoding="utf-8")
        sync_tree(self._temporary)
        # Another process may have put the same pairs there in the meantime: they are as good.
        if open_pairs(self._folder, self._key) is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._temporary.rename(self._folder)
            sync_folder(self._folder.parent)

    def _write_chunk(self) -> None:
        pairs, sources, metadata, scores, labels = zip(*self._waiting, strict=True)
        columns: list[Any] = [_ragged([getattr(pair, name) for pair in pairs]) for name in _IDS]
        columns += [pa.array(sources), pa.array(metadata)]
        columns += [pa.array(given, pa.float32()) for given in zip(*scores, strict=True)]
        columns.append(pa.array(labels, pa.int8()))
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._waiting = []


def _ragged(rows: Sequence[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))

"""A preference file → its pairs, and a report of what was found."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.records import BadLine, BadPair, bad_line, read_records
from jaxdpo.data.reports import ReadReport, tally
from jaxdpo.data.schema import IGNORED_KEYS, parse_pair, parse_supervised
from jaxdpo.data.splits import leaked_prompts
from jaxdpo.errors import UserError, nearest
from jaxdpo.files import replacing

SHOWN_BAD_LINES = 20
_NOT_JSONL = {
    b"\x1f\x8b": "is compressed (gzip); unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; write it as JSON Lines",
    b"ARROW1": "is an Arrow file; write it as JSON Lines",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}


@dataclass(frozen=True)
class ReadResult:
    """The pairs of a file in its order, what was found, and the lines that were skipped."""

    pairs: tuple[PreferencePair, ...]
    report: ReadReport
    bad_lines: tuple[BadLine, ...] = ()


def read_pairs(
    path: str, config: DataConfig, rejects_path: Path | None = None, supervised: bool = False
) -> ReadResult:
    """Reads a preference file, exactly or not at all.

    Args:
      path: The JSONL file.
      config: `on_error`, `test_fraction` and `turns` are used.
      rejects_path: With `on_error="skip"`, the file that bad lines are written to.
      supervised: Whether examples are read, without rejected completions, instead of pairs.

    Raises:
      UserError: If the file cannot be read, holds no TRAIN pairs, or, with `on_error="stop"`,
        holds a bad line.
    """
    pairs: list[PreferencePair] = []
    bad_lines: list[BadLine] = []
    ignored: Counter[str] = Counter()
    lines = blank = 0
    with _open(path) as stream:
        for record in read_records(stream, path):
            lines += 1
            if isinstance(record, BadLine):
                bad_lines.append(record)
                continue
            if record.value is None:
                blank += 1
                continue
            try:
                source = f"{path}:{record.line}"
                if supervised:
                    examples = (record.value, source, config.test_fraction, config.turns)
                    pairs += parse_supervised(*examples)
                else:
                    pairs.append(parse_pair(record.value, source, config.test_fraction))
            except BadPair as bad:
                bad_lines.append(bad_line(path, record.line, bad, record.raw))
            ignored.update(record.value.keys() & IGNORED_KEYS)
    if lines == blank:
        raise UserError(f"{path}: holds no pairs, only {lines} blank lines; write one pair a line")
    handle_bad_lines(bad_lines, config, rejects_path)
    by_split = Counter(pair.split for pair in pairs)
    report = ReadReport(
        path=path,
        lines=lines,
        blank=blank,
        pairs={"TRAIN": by_split["TRAIN"], "TEST": by_split["TEST"]},
        rejected=dict(Counter(bad.code for bad in bad_lines)),
        ignored_fields=dict(ignored),
        leaked=tuple(leaked_prompts(pairs)),
    )
    if not by_split["TRAIN"]:
        raise UserError(
            f"{path}: none of its {len(pairs)} pairs are in the TRAIN split "
            f'({len(bad_lines)} bad lines skipped); set "split": "TRAIN" on some lines, or '
            "leave split out to have it drawn by the prompt's hash"
        )
    return ReadResult(tuple(pairs), report, tuple(bad_lines))


def _open(path: str) -> BinaryIO:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{path}: is a folder; name the JSONL file in it")
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        beside = os.listdir(file.parent) if file.parent.is_dir() else []
        raise UserError(
            f"{path}: no such file{nearest(file.name, beside)}; set data.path"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    start = stream.peek(8)[:8] if isinstance(stream, io.BufferedReader) else b""
    if not start:
        stream.close()
        raise UserError(f"{path}: is empty; write one pair a line")
    for magic, remedy in _NOT_JSONL.items():
        if start.startswith(magic):
            stream.close()
            raise UserError(f"{path}: {remedy}")
    return stream


def handle_bad_lines(
    bad_lines: Sequence[BadLine], config: DataConfig, rejects_path: Path | None
) -> None:
    """Stops at bad lines, or writes them to a file, as the configuration says.

    Raises:
      UserError: With `on_error="stop"`: the first 20 of them, and how many more there are.
    """
    if config.on_error == "skip" and rejects_path is not None:
        write_rejects(bad_lines, rejects_path)
    if config.on_error == "skip" or not bad_lines:
        return
    shown = [str(bad) for bad in bad_lines[:SHOWN_BAD_LINES]]
    more = len(bad_lines) - len(shown)
    if more:
        codes = Counter(bad.code for bad in bad_lines[SHOWN_BAD_LINES:])
        shown.append(f"and {more} more ({tally(codes)})")
    shown.append(
        f"{len(bad_lines)} bad lines; mend them, or set data.on_error=skip to train on the rest"
    )
    raise UserError("\n".join(shown))


def write_rejects(bad_lines: Iterable[BadLine], path: Path) -> None:
    """Writes refused lines as JSONL of file, line, code, reason and the raw text."""
    with replacing(path) as file:
        for bad in bad_lines:
            file.write(json.dumps(vars(bad), ensure_ascii=False) + "\n")

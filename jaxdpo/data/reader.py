"""Preference data → its pairs, and a report of what was found."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo.data.config import DataConfig
from jaxdpo.data.formats import KEYS_OF, Format, drafts_of, format_of, ignored_keys
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.records import BadLine, BadPair, Record, bad_line
from jaxdpo.data.reports import ReadReport, tally
from jaxdpo.data.schema import parse_pair, parse_supervised
from jaxdpo.data.sources import Source, find_sources, raw_of, read_source
from jaxdpo.data.splits import leaked_prompts, pair_digest
from jaxdpo.errors import UserError
from jaxdpo.files import replacing

SHOWN_BAD_LINES = 20


@dataclass(frozen=True)
class ReadResult:
    """The pairs of a file in its order, what was found, and the lines that were skipped."""

    pairs: tuple[PreferencePair, ...]
    report: ReadReport
    bad_lines: tuple[BadLine, ...] = ()


def read_pairs(
    path: str | dict[str, float],
    config: DataConfig,
    rejects_path: Path | None = None,
    supervised: bool = False,
) -> ReadResult:
    """Reads preference data, exactly or not at all.

    Args:
      path: A source, or several with their weights, as `data.path` has them.
      config: How it is read; its own path is not looked at.
      rejects_path: With `on_error="skip"`, the file that bad lines are written to.
      supervised: Whether examples are read, without rejected completions, instead of pairs; their
        form is `messages`.

    Raises:
      UserError: If a source cannot be read, holds no pairs or pairs of several forms, if there are
        no TRAIN pairs, or, with `on_error="stop"`, for bad lines.
    """
    named = {path: 1.0} if isinstance(path, str) else path
    if supervised and config.format not in (None, "messages"):
        raise UserError(
            f"data.format is {config.format}, but supervised examples are read as messages only"
        )
    found = _Found(supervised)
    pairs: list[PreferencePair] = []
    for name, weight in named.items():
        first = len(pairs)
        for source in find_sources(name):
            pairs.extend(found.pairs_of(source, config))
        pairs[first:] = _weighted(pairs[first:], weight)
    if config.ranked_margin is not None and "ranked" not in found.formats:
        raise UserError(
            f"data.ranked_margin is {config.ranked_margin:g}, but {', '.join(named)} holds no "
            "ranked lists; leave it out"
        )
    handle_bad_lines(found.bad_lines, config, rejects_path)
    report = found.report(", ".join(named), pairs)
    if not report.pairs["TRAIN"]:
        raise UserError(
            f"{report.path}: none of its {len(pairs)} pairs are in the TRAIN split "
            f'({len(found.bad_lines)} bad lines skipped); set "split": "TRAIN" on some lines, or '
            "leave split out to have it drawn by the prompt's hash"
        )
    return ReadResult(tuple(pairs), report, tuple(found.bad_lines))


class _Found:
    """What was met while sources were read."""

    def __init__(self, supervised: bool) -> None:
        self.supervised = supervised
        self.lines = self.blank = 0
        self.bad_lines: list[BadLine] = []
        self.ignored: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.formats: Counter[Format] = Counter()

    def pairs_of(self, source: Source, config: DataConfig) -> Iterator[PreferencePair]:
        """The pairs of one source; the rest is noted."""
        form = "messages" if self.supervised else config.format or recognise(source)
        self.formats[form] += 1
        before = self.lines - self.blank
        for record in read_source(source):
            self.lines += 1
            if isinstance(record, BadLine):
                self.bad_lines.append(record)
            elif record.value is None:
                self.blank += 1
            else:
                yield from self._pairs_of(source.name, record, record.value, form, config)
        if self.lines - self.blank == before:
            blank = f"only {self.blank} blank lines" if self.blank else "nothing"
            raise UserError(f"{source.name}: holds no pairs, {blank}; write one pair a line")

    def _pairs_of(
        self, name: str, record: Record, value: dict[str, Any], form: Format, config: DataConfig
    ) -> list[PreferencePair]:
        self.ignored.update(ignored_keys(value, form))
        where = f"{name}:{record.line}"
        try:
            if self.supervised:
                return parse_supervised(value, where, config.test_fraction, config.turns)
            drafts = drafts_of(value, form, config.ranked_margin)
            pairs = [parse_pair(draft, where, config.test_fraction) for draft in drafts]
        except BadPair as bad:
            self.bad_lines.append(bad_line(name, record.line, bad, raw_of(record)))
            return []
        self.kept.update(drafts[0].extra.keys())
        return pairs

    def report(self, path: str, pairs: Sequence[PreferencePair]) -> ReadReport:
        """What was found, in numbers."""
        by_split = Counter(pair.split for pair in pairs)
        return ReadReport(
            path=path,
            lines=self.lines,
            blank=self.blank,
            pairs={"TRAIN": by_split["TRAIN"], "TEST": by_split["TEST"]},
            formats={str(form): count for form, count in self.formats.items()},
            rejected=dict(Counter(bad.code for bad in self.bad_lines)),
            ignored_fields=dict(self.ignored),
            kept_fields=dict(self.kept),
            leaked=tuple(leaked_prompts(pairs)),
            labels=dict(Counter(str(p.label).lower() for p in pairs if p.label is not None)),
        )


def recognise(source: Source) -> Format:
    """The form of a source's records, from all of them.

    Raises:
      UserError: If they are of several forms, or of none that is known.
    """
    first_of: dict[Format, int] = {}
    keys: Counter[str] = Counter()
    for record in read_source(source):
        if isinstance(record, BadLine) or record.value is None:
            continue
        keys.update(record.value.keys())
        form = format_of(record.value)
        if form is not None:
            first_of.setdefault(form, record.line)
    if len(first_of) > 1:
        seen = ", ".join(f"{form} (first at line {line})" for form, line in first_of.items())
        raise UserError(
            f"{source.name}: holds records of several forms: {seen}; part the file, or set "
            "data.format to the one that is meant"
        )
    if not first_of and keys:
        known = "\n".join(f"  {form}: {needs}" for form, needs in KEYS_OF.items())
        raise UserError(
            f"{source.name}: its records have {', '.join(sorted(keys)[:12])}: no known form of "
            f"preferences; the forms are\n{known}"
        )
    for form in first_of:
        return form
    # Nothing but bad or blank lines: each of them is said.
    return "messages"


def _weighted(pairs: list[PreferencePair], weight: float) -> list[PreferencePair]:
    """TRAIN pairs as often as the weight says, of a fraction those whose prompt's hash is low.

    TEST pairs stay, once each. Whether a pair is among the fraction depends on its prompt alone.
    """
    if weight == 1:
        return pairs
    whole = int(weight)
    return [
        pair
        for pair in pairs
        for _ in range(1 if pair.split == "TEST" else whole + (_drawn(pair) < weight - whole))
    ]


def _drawn(pair: PreferencePair) -> float:
    # Other bytes of the digest than those that draw the split.
    return int.from_bytes(pair_digest(pair)[8:16], "big") / 2**64


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

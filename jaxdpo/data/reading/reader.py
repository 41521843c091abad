"""Preference data → its pairs, and a report of what was found."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.config import DataConfig, Format
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.bad_lines import handle_bad_lines
from jaxdpo.data.reading.formats import KEYS_OF, drafts_of, format_of, ignored_keys
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.data.reading.reports import ReadReport
from jaxdpo.data.reading.schema import parse_pair, parse_supervised
from jaxdpo.data.reading.sources import Source, find_sources, raw_of, read_source
from jaxdpo.data.reading.splits import Prompts, pair_digest
from jaxdpo.errors import UserError


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
    reading = Reading(named, config, supervised)
    pairs: list[PreferencePair] = []
    bad_lines: list[BadLine] = []
    for met in reading:
        if isinstance(met, BadLine):
            bad_lines.append(met)
        else:
            pairs.append(met.pair)
    handle_bad_lines(bad_lines, config, rejects_path)
    return ReadResult(
        tuple(pairs), reading.report(Counter(bad.code for bad in bad_lines)), tuple(bad_lines)
    )


class Met(NamedTuple):
    """A good pair, and the record that it was made from."""

    pair: PreferencePair
    record: Record


class Reading:
    """Preference data as it is read, once: its pairs and its bad lines, few of them held at a time.

    Each pair comes as often as its source's weight says: TRAIN pairs of a fraction are those whose
    prompt's hash is low, so whether one is among them depends on its prompt alone; TEST pairs come
    once.

    Args:
      weights: The sources, with their weights.
      config: How they are read; its own path is not looked at.
      supervised: As in `read_pairs`.

    Raises:
      UserError: While it is read, if a source cannot be read, or holds no pairs or pairs of several
        forms.
    """

    def __init__(self, weights: Mapping[str, float], config: DataConfig, supervised: bool) -> None:
        if supervised and config.format not in (None, "messages"):
            raise UserError(
                f"data.format is {config.format}, but supervised examples are read as messages only"
            )
        self._weights, self._config, self._supervised = weights, config, supervised
        self._lines = self._blank = 0
        self._pairs: Counter[str] = Counter()
        self._ignored: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._prompts = Prompts()

    def __iter__(self) -> Iterator[Met | BadLine]:
        for name, weight in self._weights.items():
            for source in find_sources(name):
                for met in self._source(source):
                    if isinstance(met, BadLine):
                        yield met
                        continue
                    copies = _copies(met.pair, weight)
                    if copies:
                        self._prompts.add(met.pair)
                    for _ in range(copies):
                        self._pairs[met.pair.split] += 1
                        if met.pair.label is not None:
                            self._labels[str(met.pair.label).lower()] += 1
                        yield met
        margin = self._config.ranked_margin
        if margin is not None and "ranked" not in self._formats:
            raise UserError(
                f"data.ranked_margin is {margin:g}, but {', '.join(self._weights)} holds no "
                "ranked lists; leave it out"
            )

    def _source(self, source: Source) -> Iterator[Met | BadLine]:
        """The pairs and bad lines of one source; the rest is noted."""
        given = "messages" if self._supervised else self._config.format
        form = given or recognise(source)
        self._formats[form] += 1
        first_of: dict[Format, int] = {}
        held = 0
        for record in read_source(source):
            self._lines += 1
            if isinstance(record, Record) and record.value is None:
                self._blank += 1
                continue
            held += 1
            if isinstance(record, BadLine) or record.value is None:
                yield cast(BadLine, record)
                continue
            if given is None and (own := format_of(record.value)) is not None:
                first_of.setdefault(own, record.line)
            yield from self._record(source.name, record, record.value, form)
        if len(first_of) > 1:
            seen = ", ".join(f"{form} (first at line {line})" for form, line in first_of.items())
            raise UserError(
                f"{source.name}: holds records of several forms: {seen}; part the file, or set "
                "data.format to the one that is meant"
            )
        if not held:
            blank = f"only {self._blank} blank lines" if self._blank else "nothing"
            raise UserError(f"{source.name}: holds no pairs, {blank}; write one pair a line")

    def _record(
        self, name: str, record: Record, value: dict[str, Any], form: Format
    ) -> list[Met] | list[BadLine]:
        self._ignored.update(ignored_keys(value, form))
        where, config = f"{name}:{record.line}", self._config
        try:
            if self._supervised:
                pairs = parse_supervised(value, where, config.test_fraction, config.turns)
                return [Met(pair, record) for pair in pairs]
            drafts = drafts_of(value, form, config.ranked_margin)
            pairs = [parse_pair(draft, where, config.test_fraction) for draft in drafts]
        except BadPair as bad:
            return [bad_line(name, record.line, bad, raw_of(record))]
        self._kept.update(drafts[0].extra.keys())
        return [Met(pair, record) for pair in pairs]

    def report(self, rejected: Mapping[str, int]) -> ReadReport:
        """What was found, in numbers, once all of it is read.

        Args:
          rejected: Bad lines by code.

        Raises:
          UserError: If there are no TRAIN pairs.
        """
        path = ", ".join(self._weights)
        if not self._pairs["TRAIN"]:
            raise UserError(
                f"{path}: none of its {self._pairs.total()} pairs are in the TRAIN split "
                f'({sum(rejected.values())} bad lines skipped); set "split": "TRAIN" on some '
                "lines, or leave split out to have it drawn by the prompt's hash"
            )
        return ReadReport(
            path=path,
            lines=self._lines,
            blank=self._blank,
            pairs={"TRAIN": self._pairs["TRAIN"], "TEST": self._pairs["TEST"]},
            formats=dict(self._formats),
            rejected=dict(rejected),
            ignored_fields=dict(self._ignored),
            kept_fields=dict(self._kept),
            leaked=tuple(self._prompts.leaked()),
            labels=dict(self._labels),
        )


def recognise(source: Source) -> Format:
    """The form of a source's records, from the first that has the mark of one.

    Raises:
      UserError: If none has, though there are records.
    """
    keys: Counter[str] = Counter()
    for record in read_source(source):
        if isinstance(record, BadLine) or record.value is None:
            continue
        form = format_of(record.value)
        if form is not None:
            return form
        keys.update(record.value.keys())
    if keys:
        known = "\n".join(f"  {form}: {needs}" for form, needs in KEYS_OF.items())
        raise UserError(
            f"{source.name}: its records have {', '.join(sorted(keys)[:12])}: no known form of "
            f"preferences; the forms are\n{known}"
        )
    # Nothing but bad or blank lines: each of them is said.
    return "messages"


def _copies(pair: PreferencePair, weight: float) -> int:
    if weight == 1 or pair.split == "TEST":
        return 1
    # Other bytes of the digest than those that draw the split.
    drawn = int.from_bytes(pair_digest(pair)[8:16], "big") / 2**64
    return int(weight) + (drawn < weight - int(weight))

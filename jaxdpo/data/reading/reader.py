"""Preference data → its pairs, and a report of what was found."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxdpo.data.bad_pair import BadLine, BadPair, NothingToLearn, bad_line
from jaxdpo.data.config import DataConfig, Format
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.bad_lines import handle_bad_lines
from jaxdpo.data.reading.comparing import Rated, pairs_of_rated, rated
from jaxdpo.data.reading.examples import example_format, example_of
from jaxdpo.data.reading.formats import (
    KEYS_OF,
    drafted,
    drafts_of,
    format_of,
    ignored_keys,
    roles_of,
)
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.data.reading.renaming import Renaming
from jaxdpo.data.reading.reports import ReadReport
from jaxdpo.data.reading.schema import Where, parse_pair, parse_supervised
from jaxdpo.data.reading.shapes import flattened
from jaxdpo.data.reading.sources import (
    Source,
    find_sources,
    raw_of,
    read_source,
    splits_by_name,
)
from jaxdpo.data.reading.splits import pair_digest
from jaxdpo.data.reading.tally import Notes, Tally
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
      supervised: Whether examples are read, without rejected completions, instead of pairs.

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


class Weighted(NamedTuple):
    """A source, and how often an epoch has its TRAIN pairs."""

    source: Source
    weight: float


def find_weighted(weights: Mapping[str, float]) -> list[Weighted]:
    """Finds the sources that a configuration names, each with the split that its name says.

    Args:
      weights: Paths and names ↦ weight.

    Raises:
      UserError: If one names nothing.
    """
    # All sources are found first: whether names of files are splits depends on all of them.
    found = [
        Weighted(each, weight) for name, weight in weights.items() for each in find_sources(name)
    ]
    if splits_by_name([each.source for each in found]):
        return found
    return [Weighted(source._replace(named_split=None), weight) for source, weight in found]


class Reading:
    """Preference data as it is read, once: its pairs and its bad lines, few of them held at a time.

    Each pair comes as often as its source's weight says: TRAIN pairs of a fraction are those whose
    prompt's hash is low, so whether one is among them depends on its prompt alone; TEST pairs come
    once.

    Args:
      weights: The sources, with their weights.
      config: How they are read; its own path is not looked at.
      supervised: As in `read_pairs`.
      share: Those of the sources that are read; default: all.

    Attributes:
      tally: What was met so far.

    Raises:
      UserError: While it is read, if a source cannot be read, or holds no pairs or pairs of several
        forms.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        config: DataConfig,
        supervised: bool,
        share: Sequence[Weighted] | None = None,
    ) -> None:
        self._weights, self._config, self._supervised = weights, config, supervised
        self._share = share
        self.tally = Tally()

    def __iter__(self) -> Iterator[Met | BadLine]:
        for source, weight in find_weighted(self._weights) if self._share is None else self._share:
            if source.named_split is not None and _begins(source):
                self.tally.files[source.named_split] += 1
            for met in self._source(source):
                if isinstance(met, BadLine):
                    yield met
                    continue
                copies = _copies(met.pair, weight)
                self.tally.add(met.pair, copies)
                for _ in range(copies):
                    yield met
        if self._share is None:
            self.tally.check(", ".join(self._weights), self._config.ranked_margin)

    def _source(self, source: Source) -> Iterator[Met | BadLine]:
        """Yields the pairs and bad lines of one source, and counts the rest."""
        renaming = Renaming(self._config.columns)
        given = self._config.format
        # The source is opened twice where its form is not given: the first records may be bad, or
        # have columns that any form may have.
        form = given or recognise(source._replace(part=None), renaming, self._supervised)
        self.tally.formats[form] += _begins(source)
        notes = Notes()
        group = _Group(self, source, form, renaming)
        for record in read_source(source):
            self.tally.lines += 1
            if isinstance(record, Record) and record.value is None:
                self.tally.blank += 1
                continue
            notes.held += 1
            if isinstance(record, BadLine) or record.value is None:
                yield cast(BadLine, record)
                continue
            # First the user's names, then the known nested shapes: a path may lead into those.
            try:
                value = flattened(renaming.apply(record.value))
            except BadPair as bad:
                yield bad_line(source.name, record.line, bad, raw_of(record))
                continue
            # Two forms in one file are two files that were joined; which lines were meant is for
            # the user to say. Examples may well be mixed: each of them is read by its own columns.
            if given is None and not self._supervised and (own := format_of(value)) is not None:
                notes.first_of.setdefault(own, record.line)
            if form == "rated" and not self._supervised:
                yield from group.add(record, value)
            else:
                yield from self._record(source, record, value, form, renaming.facts)
        yield from group.close()
        notes.missing, notes.seen = renaming.missing, renaming.seen
        if source.part is None:
            notes.check(source.name, self.tally.blank)
        else:
            # The other parts may hold what this one lacks.
            self.tally.notes[source.name] = notes

    def _record(
        self,
        source: Source,
        record: Record,
        value: dict[str, Any],
        form: Format,
        facts: Sequence[str],
    ) -> list[Met] | list[BadLine]:
        if ignored := ignored_keys(value, form):
            self.tally.ignored.update(ignored)
        where = self.where(source, record)
        try:
            if self._supervised:
                draft = example_of(value, form, self._config.ranked_margin, facts)
                drafts = [draft]
                pairs = parse_supervised(draft, where, self._config.turns)
            else:
                drafts = drafts_of(value, form, self._config.ranked_margin, facts)
                pairs = [parse_pair(draft, where) for draft in drafts]
        except BadPair as bad:
            return [bad_line(source.name, record.line, bad, raw_of(record))]
        except NothingToLearn as reason:
            self.leave_out(reason)
            return []
        # The drafts of a ranked list share the record's other columns.
        self.keep(drafts[0].extra)
        return [Met(pair, record) for pair in pairs]

    def where(self, source: Source, record: Record) -> Where:
        """Returns the place of a record, and what its pairs take from it."""
        place = f"{source.name}:{record.line}"
        return Where(place, self._config.test_fraction, source.named_split, self.tally.unread)

    def leave_out(self, reason: NothingToLearn, records: int = 1) -> None:
        """Counts records that are well formed and teach nothing."""
        self.tally.left_out[reason.code] += records

    def keep(self, extra: Mapping[str, Any]) -> None:
        """Counts fields that are kept as metadata."""
        if extra:
            self.tally.kept.update(extra.keys())

    @property
    def margin(self) -> float | None:
        """The margin by which scores must differ."""
        return self._config.ranked_margin

    def report(self, rejected: Mapping[str, int]) -> ReadReport:
        """Returns what was found, in numbers, once all of it is read.

        Args:
          rejected: Bad lines by code.

        Raises:
          UserError: If there are no TRAIN pairs.
        """
        path = ", ".join(self._weights)
        return self.tally.report(path, rejected)


class _Group:
    """Rows of one prompt after the other, of which each has one answer with its score.

    Only rows that follow one another are compared, so that a file of any size is read in one pass;
    data sets of this form write them so.
    """

    def __init__(self, reading: Reading, source: Source, form: Format, renaming: Renaming) -> None:
        self._reading, self._source, self._renaming = reading, source, renaming
        self._rows: list[tuple[Record, dict[str, Any], Rated]] = []

    def add(self, record: Record, value: dict[str, Any]) -> list[Met | BadLine]:
        """Takes a row; returns the pairs of the rows before, if it asks something else."""
        try:
            row = rated(value, roles_of(value))
        except BadPair as bad:
            return [bad_line(self._source.name, record.line, bad, raw_of(record))]
        # Equal prompts that do not follow one another are groups of their own.
        met = []
        if self._rows and _messages(self._rows[0][2]) != _messages(row):
            met = self.close()
        self._rows.append((record, value, row))
        return met

    def close(self) -> list[Met | BadLine]:
        """Returns the pairs of the rows that are held, and holds none."""
        rows, self._rows = self._rows, []
        if not rows:
            return []
        met: list[Met | BadLine] = []
        record, facts = rows[0][0], self._renaming.facts
        try:
            found = pairs_of_rated([row for _, _, row in rows], self._reading.margin)
            for read, scores, better in found:
                record, value, _ = rows[better]
                draft = drafted(value, read, facts, scores)
                pair = parse_pair(draft, self._reading.where(self._source, record))
                self._reading.keep(draft.extra)
                met.append(Met(pair, record))
        except BadPair as bad:
            met.append(bad_line(self._source.name, record.line, bad, raw_of(record)))
        except NothingToLearn as reason:
            self._reading.leave_out(reason, len(rows))
        return met


def _messages(row: Rated) -> list[Any]:
    return [said.message for said in row.asked.messages]


def recognise(source: Source, renaming: Renaming, supervised: bool = False) -> Format:
    """Recognises the form of a source's records, from the first that has the mark of one.

    Args:
      source: The source.
      renaming: What its columns are called.
      supervised: Whether forms without a preference are looked for.

    Raises:
      UserError: If none has, though there are records.
    """
    keys: Counter[str] = Counter()
    for record in read_source(source):
        if isinstance(record, BadLine) or record.value is None:
            continue
        # What is wrong with a record is said when it is read; here another one may tell the form.
        try:
            value = flattened(renaming.apply(record.value))
        except BadPair:
            continue
        form = example_format(value) if supervised else format_of(value)
        if form is not None:
            return form
        keys.update(record.value.keys())
    if keys:
        known = "\n".join(f"  {form}: {needs}" for form, needs in KEYS_OF.items())
        raise UserError(
            f"{source.name}: its records have {', '.join(sorted(keys)[:12])}: no known form of "
            f"{'examples' if supervised else 'preferences'}; name the columns by data.columns, "
            f"such as {{prompt: …, chosen: …, rejected: …}}, or write one of the forms\n{known}"
        )
    # Nothing but bad or blank lines: each of them is said.
    return "messages"


def _begins(source: Source) -> bool:
    """Tells whether a source is whole, or the first part of a file."""
    return source.part is None or source.part.start == 0


def _copies(pair: PreferencePair, weight: float) -> int:
    if weight == 1 or pair.split == "TEST":
        return 1
    # Other bytes of the digest than those that draw the split: with the same ones, a half of TRAIN
    # would be the prompts with the lowest numbers, which TEST has taken.
    drawn = int.from_bytes(pair_digest(pair)[8:16], "big") / 2**64
    return int(weight) + (drawn < weight - int(weight))

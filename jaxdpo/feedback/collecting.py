"""Makes pairs of a file of feedback, and reports what was found on the way."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.bad_lines import SHOWN_BAD_LINES
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.data.reading.reports import tally
from jaxdpo.data.reading.sources import Source, raw_of, read_source
from jaxdpo.errors import UserError
from jaxdpo.feedback.conflicts import (
    Agreement,
    by_majority,
    comparisons,
    judgement_agreement,
    preference_agreement,
)
from jaxdpo.feedback.events import parse_event, records_of, turns_of
from jaxdpo.feedback.judged import by_prompt, parse_judged
from jaxdpo.feedback.preferences import FeedbackConfig, NoPair, make_pair
from jaxdpo.feedback.sources import SOURCES, SourceName

Feedback = SourceName | Literal["events"]
FEEDBACK: tuple[Feedback, ...] = (*get_args(SourceName), "events")
_EXAMPLES = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """The pairs of a file of feedback, and a report.

    Attributes:
      pairs: The preferences, in order.
      by_source: How many pairs came from each source, before contradicting ones went.
      no_pair: Where feedback stands that made no pair, by the reason's code.
      unjudged: Answers that were left out because a criterion has no judgement of them.
      conflicts: Pairs of answers that were preferred both ways.
      outvoted: Pairs that went because of such a conflict.
      agreements: How far annotators agree, where two of them judged the same.
      bad_lines: Lines that were skipped.
    """

    pairs: tuple[PreferencePair, ...]
    by_source: dict[str, int]
    no_pair: dict[str, list[str]]
    unjudged: int
    conflicts: int
    outvoted: int
    agreements: tuple[Agreement, ...]
    bad_lines: tuple[BadLine, ...]

    def summary(self) -> str:
        """Returns the report in a few lines of text."""
        splits = Counter(pair.split for pair in self.pairs)
        said = [
            f"{len(self.pairs)} pairs, {splits['TRAIN']} TRAIN and {splits['TEST']} TEST"
            + (f" ({tally(self.by_source)})" if self.by_source else "")
        ]
        for code, where in sorted(self.no_pair.items()):
            said.append(f"no pair, {code}: {len(where)} (first: {', '.join(where[:_EXAMPLES])})")
        if self.unjudged:
            said.append(f"answers left out, not judged by every criterion: {self.unjudged}")
        if self.conflicts:
            said.append(
                f"conflicts, two answers preferred both ways: {self.conflicts}; pairs left out for "
                f"it: {self.outvoted}"
            )
        said += [f"agreement of annotators on {each}" for each in self.agreements]
        if self.bad_lines:
            codes = tally(Counter(bad.code for bad in self.bad_lines))
            said.append(f"bad lines skipped: {len(self.bad_lines)} ({codes})")
        return "\n".join(said)


def collect(source: Feedback, path: str, config: FeedbackConfig | None = None) -> Collected:
    """Makes pairs of a file of feedback.

        collected = collect("user_edits", "drafts.jsonl")
        write_pairs(collected.pairs, Path("pairs.jsonl"))

    Args:
      source: The kind of feedback that the file holds: one of `SOURCES`, or "events" for the log of
        a chat application, as `jaxdpo.feedback.events` describes it.
      path: A file of records, as training data may be kept.
      config: Which pairs are made.

    Raises:
      UserError: If the file cannot be read, or for bad lines with `on_error="stop"`.
    """
    config = config or FeedbackConfig()
    collecting = _Collecting(path, config)
    if source == "events":
        _from_events(collecting)
    elif source == "criteria":
        _from_judged(collecting)
    else:
        for where, record in collecting.lines(lambda record, where: (where, record)):
            collecting.add(source, record, where)
    return collecting.result()


class _Collecting:
    """The pairs and faults found so far."""

    def __init__(self, path: str, config: FeedbackConfig) -> None:
        self.path, self.config = path, config
        self.records: dict[str, Record] = {}
        self.pairs: list[PreferencePair] = []
        self.by_source: Counter[str] = Counter()
        self.no_pair: defaultdict[str, list[str]] = defaultdict(list)
        self.bad_lines: list[BadLine] = []
        self.agreements: list[Agreement] = []
        self.unjudged = 0

    def lines(self, parse: Callable[[dict[str, Any], str], T]) -> Iterator[T]:
        """Yields the lines of the file, parsed; lines that can't be are noted.

        Args:
          parse: Makes something of a record and of its place, `file:line`.
        """
        for record in read_source(Source(self.path)):
            if isinstance(record, BadLine):
                self.bad_lines.append(record)
            elif record.value is not None:
                where = f"{self.path}:{record.line}"
                # Only `parse` is guarded: what the caller does with a line is no fault of the line.
                try:
                    parsed = parse(record.value, where)
                except BadPair as bad:
                    self.bad(where, bad, record)
                else:
                    yield parsed

    # Events of several lines make one record, so that a fault is known by its place alone.
    def bad(self, where: str, bad: BadPair, record: Record | None = None) -> None:
        raw = raw_of(record) if record else b""
        self.bad_lines.append(bad_line(self.path, int(where.rpartition(":")[2]), bad, raw))

    def add(self, source: SourceName, record: dict[str, Any], where: str) -> None:
        """Takes the pairs of one record, or notes why it makes none.

        Args:
          source: The kind of feedback.
          record: Its fields.
          where: Its place, `file:line`.
        """
        try:
            preferences = SOURCES[source](record, self.config)
            # All pairs of a record are made before any is kept: a record with one bad answer is
            # refused whole.
            pairs = [
                make_pair(record, preference, source, where, self.config.test_fraction)
                for preference in preferences
            ]
        except NoPair as none:
            self.no_pair[none.code].append(where)
        except BadPair as bad:
            self.bad(where, bad)
        else:
            self.pairs += pairs
            self.by_source[source] += len(pairs)

    def result(self) -> Collected:
        """Returns what was found, contradictions resolved.

        Raises:
          UserError: For bad lines with `on_error="stop"`.
        """
        if self.bad_lines and self.config.on_error == "stop":
            shown = [str(bad) for bad in self.bad_lines[:SHOWN_BAD_LINES]]
            raise UserError(
                "\n".join(shown)
                + f"\n{len(self.bad_lines)} bad lines; fix them, or set on_error=skip to leave "
                "them out"
            )
        # Agreement is measured before contradicting pairs go, or it would always be perfect.
        agreements = [*self.agreements]
        agreement = preference_agreement(self.pairs)
        if agreement.judgements:
            agreements.append(agreement)
        left, outvoted = self.pairs, 0
        if self.config.conflicts == "majority":
            left, outvoted = by_majority(self.pairs)
        return Collected(
            pairs=tuple(left),
            by_source=dict(self.by_source),
            no_pair=dict(self.no_pair),
            unjudged=self.unjudged,
            conflicts=sum(all(sides) for sides in comparisons(self.pairs)),
            outvoted=outvoted,
            agreements=tuple(agreements),
            bad_lines=tuple(self.bad_lines),
        )


def _from_judged(collecting: _Collecting) -> None:
    # An answer's judgements may stand anywhere in the file, so all lines are read first.
    judged = list(collecting.lines(parse_judged))
    for where, record, unjudged in by_prompt(judged):
        collecting.unjudged += unjudged
        collecting.add("criteria", record, where)
    collecting.agreements += judgement_agreement(judged)


def _from_events(collecting: _Collecting) -> None:
    for turn in turns_of(collecting.lines(parse_event)):
        try:
            derived = records_of(turn)
        except NoPair as none:
            collecting.no_pair[none.code].append(turn[0].where)
        else:
            for source, record, where in derived:
                collecting.add(source, record, where)

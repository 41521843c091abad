"""Makes pairs of files of feedback, and reports what was found on the way."""

import glob
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.bad_lines import SHOWN_BAD_LINES
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.data.reading.reports import tally
from jaxdpo.data.reading.sources import Source, find_sources, raw_of, read_source
from jaxdpo.errors import UserError
from jaxdpo.feedback.conflicts import (
    Agreement,
    by_majority,
    comparisons,
    judgement_agreement,
    label_agreement,
    preference_agreement,
)
from jaxdpo.feedback.events import parse_event, turns_of
from jaxdpo.feedback.judged import Judged, by_prompt, parse_judged
from jaxdpo.feedback.preferences import FeedbackConfig, NoPair, make_pair
from jaxdpo.feedback.sources import SOURCES, SourceName
from jaxdpo.feedback.store import is_store, stored_events
from jaxdpo.feedback.tools.table import TOOLS, ToolName
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived, records_of

Feedback = SourceName | Literal["events"] | ToolName
FEEDBACK: tuple[Feedback, ...] = (*get_args(SourceName), "events", *get_args(ToolName))
_EXAMPLES = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """The pairs of files of feedback, and a report.

    Attributes:
      pairs: The preferences, in order.
      labelled: Answers that were labelled by themselves, thumbs up or down.
      judged: People's judgements of answers by criteria.
      by_source: How many pairs and labels came from each source, before contradicting ones went.
      no_pair: Where feedback stands that made no pair, by the reason's code.
      unjudged: Answers that were left out because a criterion has no judgement of them.
      conflicts: Pairs of answers that were preferred both ways.
      outvoted: Pairs that went because of such a conflict.
      agreements: How far annotators agree, where two of them judged the same.
      bad_lines: Lines that were skipped.
    """

    pairs: tuple[PreferencePair, ...]
    labelled: tuple[PreferencePair, ...]
    judged: tuple[Judged, ...]
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
        if self.labelled:
            good = sum(pair.label is True for pair in self.labelled)
            said.append(
                f"labelled answers: {len(self.labelled)} ({good} good, "
                f"{len(self.labelled) - good} bad)"
            )
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
            said += [f"  {bad}" for bad in self.bad_lines[:_EXAMPLES]]
        return "\n".join(said)


def collect(
    source: Feedback, path: str | Sequence[str], config: FeedbackConfig | None = None
) -> Collected:
    """Makes pairs of files of feedback.

        collected = collect("user_edits", "drafts.jsonl")
        write_pairs(collected.pairs, Path("pairs.jsonl"))

    Args:
      source: The kind of feedback that the files hold: one of `SOURCES`, "events" for the log of a
        chat application, as `jaxdpo.feedback.events` describes it, or for a studio's folder; or the
        name of a tool that exported them, one of `TOOLS`.
      path: File of records, as training data may be kept; a folder or glob of such; or several.
      config: Which pairs are made.

    Raises:
      UserError: If a file cannot be read, or for bad lines with `on_error="stop"`.
    """
    return collect_all([(source, path)], config)


def collect_all(
    feedback: Iterable[tuple[Feedback, str | Sequence[str]]], config: FeedbackConfig | None = None
) -> Collected:
    """Makes pairs of feedback of several kinds, whose annotators may contradict each other.

        collect_all([("events", "feedback"), ("user_edits", ["may.jsonl", "june.jsonl"])])

    Args:
      feedback: Kinds and their files, as `collect` takes them.
      config: Which pairs are made.

    Raises:
      UserError: If a file cannot be read, or for bad lines with `on_error="stop"`.
    """
    collecting = _Collecting(config or FeedbackConfig())
    for source, path in feedback:
        collecting.take(source, files_of(path))
    collecting.take_judged()
    return collecting.result()


def files_of(path: str | Sequence[str]) -> list[str]:
    """Returns the files that paths, folders and globs stand for; a studio's folder is one.

    Raises:
      UserError: If a folder or glob holds no data.
    """
    found = []
    for each in [path] if isinstance(path, str) else path:
        # A folder may hold a database and nothing else that reads as data.
        several = Path(each).expanduser().is_dir() or glob.has_magic(each)
        whole = is_store(each) or not several
        found += [each] if whole else [source.name for source in find_sources(each)]
    return list(dict.fromkeys(found))


class _Collecting:
    """The pairs and faults found so far."""

    def __init__(self, config: FeedbackConfig) -> None:
        self.config = config
        self.path = ""
        self.pairs: list[PreferencePair] = []
        self.judged: list[Judged] = []
        self.by_source: Counter[str] = Counter()
        self.no_pair: defaultdict[str, list[str]] = defaultdict(list)
        self.bad_lines: list[BadLine] = []
        self.unjudged = 0
        # Whether a line that is not understood ends it all; a log has events of every kind.
        self.stops = False

    def take(self, source: Feedback, paths: Sequence[str]) -> None:
        """Takes the feedback of files of one kind.

        Args:
          source: The kind of feedback.
          paths: The files, or studios' folders.
        """
        before = len(self.bad_lines)
        if source in TOOLS:
            self._take_exported(TOOLS[source](), paths)
        for path in paths if source not in TOOLS else ():
            self.path = path
            if source == "events":
                self._take_events()
            elif source == "criteria":
                # An answer's judgements may stand anywhere, so all lines are read first.
                self.judged += self.lines(parse_judged)
            elif source in SOURCES:
                for where, record in self.lines(lambda record, where: (where, record)):
                    self.add(source, record, where)
        default = "skip" if source == "events" else "stop"
        if (self.config.on_error or default) == "stop" and len(self.bad_lines) > before:
            self.stops = True

    def _take_exported(self, tool: Tool, paths: Sequence[str]) -> None:
        for path in paths:
            self.path = path
            for derived in self.lines(tool.parse, tool.records(path)):
                for kind, record, where in derived:
                    self.add(kind, record, where)
        # What stands in several files, as answers and their scores do, is known after the last.
        for found in tool.finish():
            if isinstance(found, Derived):
                self.add(*found)
            else:
                where, code = found
                self.no_pair[code].append(where)

    def _take_events(self) -> None:
        # A studio's events are numbered as lines are, and read like them from here on.
        stored = stored_events(self.path) if is_store(self.path) else None
        for turn in turns_of(self.lines(parse_event, stored)):
            try:
                derived = records_of(turn, self.config)
            except NoPair as none:
                self.no_pair[none.code].append(turn[0].where)
            else:
                for source, record, where in derived:
                    self.add(source, record, where)

    def lines(
        self,
        parse: Callable[[dict[str, Any], str], T],
        records: Iterable[Record | BadLine] | None = None,
    ) -> Iterator[T]:
        """Yields the lines of the file, parsed; lines that can't be are noted.

        Args:
          parse: Makes something of a record and of its place, `file:line`.
          records: The lines, where they are not to be read from the file.
        """
        for record in read_source(Source(self.path)) if records is None else records:
            if isinstance(record, BadLine):
                self.bad_lines.append(record)
            elif record.value is not None:
                where = f"{self.path}:{record.line}"
                # Only `parse` is guarded: what the caller does with a line is no fault of the line.
                try:
                    parsed = parse(record.value, where)
                except NoPair as none:
                    self.no_pair[none.code].append(where)
                except BadPair as bad:
                    self.bad(where, bad, record)
                else:
                    yield parsed

    # Events of several lines make one record, so that a fault is known by its place alone.
    def bad(self, where: str, bad: BadPair, record: Record | None = None) -> None:
        """Notes a line that is refused.

        Args:
          where: Its place, `file:line`.
          bad: Why.
          record: The line.
        """
        file, _, line = where.rpartition(":")
        self.bad_lines.append(bad_line(file, int(line), bad, raw_of(record) if record else b""))

    def add(self, source: SourceName, record: dict[str, Any], where: str) -> None:
        """Takes the pairs of one record, or notes why it makes none.

        Args:
          source: The kind of feedback.
          record: Its fields.
          where: Its place, `file:line`.
        """
        try:
            if source == "criteria" and "answers" not in record:
                # One judgement of several: pairs are made of all there are, at the end.
                self.judged.append(parse_judged(record, where))
                return
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

    def take_judged(self) -> None:
        """Takes the pairs of the judgements of all files."""
        before = len(self.bad_lines)
        for where, record, unjudged in by_prompt(self.judged):
            self.unjudged += unjudged
            self.add("criteria", record, where)
        if self.config.on_error != "skip" and len(self.bad_lines) > before:
            self.stops = True

    def result(self) -> Collected:
        """Returns what was found, contradictions resolved.

        Raises:
          UserError: For bad lines with `on_error="stop"`.
        """
        if self.stops:
            shown = [str(bad) for bad in self.bad_lines[:SHOWN_BAD_LINES]]
            raise UserError(
                "\n".join(shown)
                + f"\n{len(self.bad_lines)} bad lines; fix them, or set on_error=skip to leave "
                "them out"
            )
        # A label is about one answer and a preference about two: each has agreement of its own.
        labelled = [pair for pair in self.pairs if pair.label is not None]
        compared = [pair for pair in self.pairs if pair.label is None]
        # Agreement is measured before contradicting pairs go, or it would always be perfect.
        agreements = judgement_agreement(self.judged) + label_agreement(labelled)
        agreement = preference_agreement(compared)
        if agreement.judgements:
            agreements.append(agreement)
        left, outvoted = self.pairs, 0
        if self.config.conflicts == "majority":
            left, outvoted = by_majority(self.pairs)
        return Collected(
            pairs=tuple(pair for pair in left if pair.label is None),
            labelled=tuple(pair for pair in left if pair.label is not None),
            judged=tuple(self.judged),
            by_source=dict(self.by_source),
            no_pair=dict(self.no_pair),
            unjudged=self.unjudged,
            conflicts=sum(all(sides) for sides in comparisons(self.pairs)),
            outvoted=outvoted,
            agreements=tuple(agreements),
            bad_lines=tuple(self.bad_lines),
        )

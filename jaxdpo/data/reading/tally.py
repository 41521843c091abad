"""Counts of what was met in preference data, which add up over the files that it is read from."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.doubts import Doubts
from jaxdpo.data.reading.renaming import check_columns
from jaxdpo.data.reading.reports import ReadReport
from jaxdpo.data.reading.splits import Prompts
from jaxdpo.errors import UserError

_COUNTS = ("pairs", "ignored", "kept", "formats", "labels", "left_out", "unread", "files")
_TALLY, _TRAINED, _TESTED = "tally.json", "trained.npy", "tested.npy"


@dataclass
class Notes:
    """Findings about a source that count only once all of it is read.

    Attributes:
      held: Its records, blank lines excepted.
      first_of: The line of the first record of each form.
      missing: Paths of `data.columns` that no record had.
      seen: Columns that records had.
    """

    held: int = 0
    first_of: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def merge(self, other: "Notes") -> None:
        """Takes over what is known of the lines that follow."""
        self.held += other.held
        for form, line in other.first_of.items():
            self.first_of.setdefault(form, line)
        self.missing = sorted({*self.missing} & {*other.missing})
        self.seen = list(dict.fromkeys([*self.seen, *other.seen]))

    def check(self, name: str, blank: int) -> None:
        """Refuses a source that is not what it should be.

        Args:
          name: The source.
          blank: Blank lines that were met.

        Raises:
          UserError: If it holds records of several forms, none, or not the columns that were named.
        """
        if len(self.first_of) > 1:
            seen = ", ".join(f"{f} (first at line {line})" for f, line in self.first_of.items())
            raise UserError(
                f"{name}: holds records of several forms: {seen}; part the file, or set "
                "data.format to the one that is meant"
            )
        if not self.held:
            what = f"only {blank} blank lines" if blank else "nothing"
            raise UserError(f"{name}: holds no pairs, {what}; write one pair a line")
        check_columns(name, self.missing, self.seen)


class Tally:
    """Counts of what was met in some files; `ReadReport` explains them.

    Attributes:
      lines: Lines or rows, blank ones included.
      blank: Blank lines.
      pairs: Good pairs by split.
      ignored: Lines by request field that was ignored.
      kept: Lines by field that was kept as metadata.
      formats: Files by form.
      labels: Answers that were judged by themselves, by label.
      left_out: Records that teach nothing, by why.
      unread: Fields of messages that nothing reads.
      files: Files that are a split by their name.
      doubts: What looks wrong.
      prompts: Prompts by split.
      notes: Of files that are read in parts, by name.
    """

    def __init__(self) -> None:
        self.lines = self.blank = 0
        self.pairs: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.doubts = Doubts()
        self.prompts = Prompts()
        self.notes: dict[str, Notes] = {}

    def add(self, pair: PreferencePair, copies: int) -> None:
        """Counts a pair that comes so many times."""
        # A pair that comes twice is one pair in the report of leaks, and one that never comes
        # cannot leak.
        if not copies:
            return
        self.prompts.add(pair)
        self.doubts.add(pair)
        self.pairs[pair.split] += copies
        if pair.label is not None:
            self.labels[str(pair.label).lower()] += copies

    def merge(self, other: "Tally") -> None:
        """Adds what was met in files that follow."""
        self.lines += other.lines
        self.blank += other.blank
        for name in _COUNTS:
            getattr(self, name).update(getattr(other, name))
        self.doubts.merge(other.doubts)
        self.prompts.merge(other.prompts)
        for name, notes in other.notes.items():
            if name in self.notes:
                self.notes[name].merge(notes)
            else:
                self.notes[name] = notes

    def save(self, folder: Path) -> None:
        """Writes it to a folder, for another process."""
        values = {name: getattr(self, name) for name in ("lines", "blank", *_COUNTS)}
        values |= {"doubts": self.doubts.to_json(), "tested": self.prompts.sources}
        values["notes"] = {name: vars(notes) for name, notes in self.notes.items()}
        (folder / _TALLY).write_text(json.dumps(values), encoding="utf-8")
        np.save(folder / _TRAINED, np.array(self.prompts.trained, np.uint64))
        np.save(folder / _TESTED, np.array(self.prompts.tested, np.uint64))

    @classmethod
    def load(cls, folder: Path) -> "Tally":
        """Reads what `save` wrote.

        Raises:
          OSError: If it is not there.
          ValueError: If it is damaged.
        """
        values = json.loads((folder / _TALLY).read_text(encoding="utf-8"))
        tally = cls()
        tally.lines, tally.blank = values["lines"], values["blank"]
        for name in _COUNTS:
            getattr(tally, name).update(values[name])
        tally.doubts = Doubts.from_json(values["doubts"])
        tally.notes = {name: Notes(**notes) for name, notes in values["notes"].items()}
        tally.prompts.sources = values["tested"]
        tally.prompts.trained.frombytes(np.load(folder / _TRAINED).tobytes())
        tally.prompts.tested.frombytes(np.load(folder / _TESTED).tobytes())
        return tally

    def report(self, path: str, rejected: Mapping[str, int]) -> ReadReport:
        """Returns what was found, in numbers, once all of it is read.

        Args:
          path: The sources, as the user named them.
          rejected: Bad lines by code.

        Raises:
          UserError: If there are no TRAIN pairs.
        """
        if not self.pairs["TRAIN"]:
            raise UserError(
                f"{path}: none of its {self.pairs.total()} pairs are in the TRAIN split "
                f'({sum(rejected.values())} bad lines skipped); set "split": "TRAIN" on some '
                "lines, or leave split out to have it drawn by the prompt's hash"
            )
        return ReadReport(
            path=path,
            lines=self.lines,
            blank=self.blank,
            pairs={"TRAIN": self.pairs["TRAIN"], "TEST": self.pairs["TEST"]},
            formats=dict(self.formats),
            rejected=dict(rejected),
            ignored_fields=dict(self.ignored),
            kept_fields=dict(self.kept),
            leaked=tuple(self.prompts.leaked()),
            labels=dict(self.labels),
            left_out=dict(self.left_out),
            message_fields=dict(self.unread),
            split_files=dict(self.files),
            warnings=tuple(self.doubts.warnings()),
        )

    def check(self, path: str, ranked_margin: float | None) -> None:
        """Refuses what can only be told once all is read.

        Args:
          path: The sources, as the user named them.
          ranked_margin: The setting that only ranked lists read.

        Raises:
          UserError: If a source is not what it should be, or nothing reads the setting.
        """
        for name, notes in self.notes.items():
            notes.check(name, self.blank)
        # A setting that nothing reads is a mistake.
        if ranked_margin is not None and not {"ranked", "rated"} & self.formats.keys():
            raise UserError(
                f"data.ranked_margin is {ranked_margin:g}, but {path} holds no ranked lists; "
                "leave it out"
            )

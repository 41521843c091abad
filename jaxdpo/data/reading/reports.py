"""Reports of what was found on the way from a file to token ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxdpo.data.pairs import Split
from jaxdpo.data.warnings import warn_of_drops


@dataclass(frozen=True)
class ReadReport:
    """The contents of a source, in numbers.

    Attributes:
      path: The file or files, as the user named them.
      lines: Their lines or rows, blank ones included.
      blank: Its blank lines.
      pairs: Good pairs by split.
      formats: Files by the form of their records.
      rejected: Bad lines by code.
      ignored_fields: Lines by request field that was ignored (`temperature`, …).
      kept_fields: Lines by field that is none of the form's, and was kept as metadata.
      leaked: `file:line` of TEST pairs whose prompt stands in TRAIN too.
      labels: Answers that were judged by themselves, by label; they count as pairs.
      left_out: Records that are well formed and teach nothing, by why: ties, weights of 0, ….
      message_fields: Fields of messages that nothing reads, by how many messages have them.
      split_files: Files that are TRAIN or TEST by their names.
      warnings: What looks wrong in what was read.
    """

    path: str
    lines: int
    blank: int
    pairs: dict[Split, int]
    formats: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    ignored_fields: dict[str, int] = field(default_factory=dict)
    kept_fields: dict[str, int] = field(default_factory=dict)
    leaked: tuple[str, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    message_fields: dict[str, int] = field(default_factory=dict)
    split_files: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns the report in a few lines of text."""
        said = [
            f"{self.path}: {self.lines} lines, {self.pairs['TRAIN']} TRAIN and "
            f"{self.pairs['TEST']} TEST pairs"
        ]
        if self.formats and self.formats != {"messages": 1}:
            said.append(f"files by form: {tally(self.formats)}")
        # Only what there is of each kind is said, so that an ordinary file has one line.
        if self.labels:
            said.append(f"labelled answers: {tally(self.labels)}")
        if self.split_files:
            said.append(f"files that are a split by their name: {tally(self.split_files)}")
        if self.left_out:
            said.append(f"records left out, nothing to learn: {tally(self.left_out)}")
        if self.blank:
            said.append(f"blank lines: {self.blank}")
        if self.rejected:
            said.append(
                f"bad lines skipped: {sum(self.rejected.values())} ({tally(self.rejected)})"
            )
        if self.ignored_fields:
            said.append(f"request fields ignored: {tally(self.ignored_fields)}")
        # Both are said by name: the user sees at once which column was not what it seemed.
        if self.kept_fields:
            said.append(f"fields kept as metadata: {tally(self.kept_fields)}")
        if self.message_fields:
            said.append(f"fields of messages not read: {tally(self.message_fields)}")
        # Warnings come last, where they are read.
        said += [f"warning: {warning}" for warning in self.warnings]
        # Not refused: a benchmark's own split may be meant so.
        if self.leaked:
            said.append(
                f"warning: {len(self.leaked)} TEST pairs have a prompt that stands in TRAIN too "
                f"(first at {self.leaked[0]}); TEST figures will flatter"
            )
        if not self.pairs["TEST"]:
            said.append("warning: no TEST pairs; nothing will be evaluated")
        return "\n".join(said)


@dataclass(frozen=True)
class TokenizeReport:
    """The fate of pairs that were tokenised.

    Attributes:
      pairs: How many there are now.
      cut_by_message: `file:line` of pairs whose prompt lost its oldest messages to fit.
      cut_by_token: Those whose prompt was cut within a message.
      dropped: Those whose completions leave no room for a prompt.
      spelled_control: Those with text that spells a control token, kept as ordinary text.
      reopened: Those with an answer that the chat template writes without what the generation
        prompt opens; they are put after the prompt as it will be asked.
      ids_unused: Those with an answer whose sampled ids are another vocabulary's, or another
        text's: the text was encoded.
      rejected: Those that the chat template or tokenizer refuses; they are bad lines, too.
    """

    pairs: int
    cut_by_message: tuple[str, ...] = ()
    cut_by_token: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    spelled_control: tuple[str, ...] = ()
    reopened: tuple[str, ...] = ()
    ids_unused: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    def summary(self, max_length: int) -> str:
        """Returns the report in a few lines of text; nothing where nothing happened."""
        counts = [
            (self.cut_by_message, f"prompts lost their oldest messages to fit {max_length} tokens"),
            (self.cut_by_token, f"prompts were cut within a message to fit {max_length} tokens"),
            (self.dropped, f"pairs dropped: their completions leave {max_length} tokens no room"),
            (self.spelled_control, "pairs spell control tokens in their text; kept as plain text"),
            (
                self.reopened,
                "pairs have answers that the chat template writes without what its generation "
                "prompt opens (reasoning); trained after the prompt as it will be asked",
            ),
            (
                self.ids_unused,
                "pairs have answers with sampled ids that are not this tokenizer's or not of "
                "their text; the text was encoded",
            ),
            (self.rejected, "pairs skipped that cannot be rendered"),
        ]
        said = [
            f"{len(where)} {what} (first: {', '.join(where[:3])})"
            for where, what in counts
            if where
        ]
        if warning := warn_of_drops(len(self.dropped), self.pairs, max_length):
            said.append(f"warning: {warning}")
        return "\n".join(said)


def tally(counts: Mapping[str, int]) -> str:
    """Writes counts in one line: `"nul 1, surrogate 2"`."""
    return ", ".join(f"{key} {count}" for key, count in sorted(counts.items()))

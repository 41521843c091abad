"""Collects files of feedback into a file of preference pairs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.feedback.collecting import Collected, Feedback, collect_all
from jaxdpo.feedback.human_judgements import write_alignment
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.printable import show


class CollectConfig(FeedbackConfig):
    """The feedback to collect, and the file of the pairs."""

    source: Feedback | None = Field(default=None, description="kind of feedback")
    data: str | tuple[str, ...] = Field(
        default=(), description="files of the feedback, folders or globs of them"
    )
    sources: dict[Feedback, str | tuple[str, ...]] = Field(
        default={},
        description="more feedback, files by kind: {events: feedback, user_edits: [a.jsonl]}",
    )
    out: str | None = Field(default=None, description="JSONL file of the pairs; -o for short")
    labels: bool = Field(
        default=False,
        description="write answers that were labelled by themselves (thumbs, all bad) in place of "
        "pairs, for a loss that takes them, such as kto",
    )
    alignment: str | None = Field(
        default=None,
        description="JSONL file of people's PASS and FAIL, as evaluate alignment=… reads it",
    )
    criterion: str | None = Field(
        default=None, description="the criterion of alignment, where people judged by several"
    )
    overwrite: bool = Field(default=False, description="replace a file if it is there already")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.out is None and self.alignment is None:
            raise ValueError(
                "out: must be given; set out=… on the command line or in the YAML file, or "
                "alignment=…"
            )
        if (self.source is None) != (not self.data):
            missing = "source" if self.source is None else "data"
            raise ValueError(f"{missing}: must be given; set {missing}=…")
        if not self.data and not self.sources:
            raise ValueError("data: must be given; set source=… and data=…, or sources=…")
        if self.criterion is not None and self.alignment is None:
            raise ValueError("criterion would be ignored; set alignment=…")
        return self

    @property
    def feedback(self) -> list[tuple[Feedback, str | tuple[str, ...]]]:
        """All kinds of feedback and their files."""
        found: list[tuple[Feedback, str | tuple[str, ...]]] = []
        if self.source is not None:
            found.append((self.source, self.data))
        return [*found, *self.sources.items()]


def collect_to_file(config: CollectConfig) -> Collected:
    """Makes pairs of the feedback, prints the counts, and writes the pairs.

    >>> collect_to_file(CollectConfig(source="user_edits", data="drafts.jsonl", out="pairs.jsonl"))

    Returns:
      The pairs, and what made none.

    Raises:
      UserError: If the feedback cannot be read, no line makes a pair, a file cannot be written, or
        another one is in its place.
    """
    collected = collect_all(config.feedback, config)
    show(collected.summary())
    if config.alignment is not None:
        target = Path(config.alignment).expanduser()
        with _written(target, config.overwrite) as new:
            write_alignment(collected.judged, config.criterion, new)
        show(f"written: {target}")
    if config.out is not None:
        target = Path(config.out).expanduser()
        pairs = _chosen(collected, config)
        with _written(target, config.overwrite) as new:
            write_pairs(pairs, new)
        show(f"written: {target}")
    return collected


def _chosen(collected: Collected, config: CollectConfig) -> tuple[PreferencePair, ...]:
    """Returns the pairs, or the labelled answers where those are asked for, or can only be meant.

    Raises:
      UserError: If there are none.
    """
    # A file of thumbs can make nothing else, so there it need not be asked for.
    labels = config.labels or {source for source, _ in config.feedback} == {"thumbs"}
    found = collected.labelled if labels else collected.pairs
    if found:
        return found
    files = ", ".join(
        path if isinstance(path, str) else ", ".join(path) for _, path in config.feedback
    )
    kind, hint = "label" if labels else "pair", ""
    if collected.labelled:
        hint = (
            f"; there are {len(collected.labelled)} labelled answers: set labels=true to write "
            "those"
        )
    raise UserError(f"{files}: no line makes a {kind}; {config.out} is not written{hint}")


@contextlib.contextmanager
def _written(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yields the path to write a file to, and puts it in its place unless that holds another."""
    new = target.with_name(f".{target.name}.new")
    try:
        yield new
        # The same command again may write the same file; anything else there is not ours to lose.
        if target.exists() and not overwrite and new.read_bytes() != target.read_bytes():
            raise UserError(
                f"{target}: is there already, and holds something else; set overwrite=true, or "
                "name another file"
            )
        new.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)

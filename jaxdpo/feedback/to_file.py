"""Collects a file of feedback into a file of preference pairs."""

from pathlib import Path

from pydantic import Field

from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.feedback.collecting import Feedback, collect
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.storage.files import refuse_existing


class CollectConfig(FeedbackConfig):
    """The feedback to collect, and the file of the pairs."""

    source: Feedback = Field(description="kind of feedback")
    data: str = Field(description="JSONL file of the feedback")
    out: str = Field(description="JSONL file of the pairs; -o for short")
    overwrite: bool = Field(default=False, description="replace the file if it is there already")


def collect_to_file(config: CollectConfig) -> None:
    """Makes pairs of the feedback, prints the counts, and writes the pairs.

    Raises:
      UserError: If the feedback cannot be read, no line makes a pair, or the file cannot be
        written.
    """
    target = Path(config.out).expanduser()
    if not config.overwrite:
        refuse_existing(target)
    collected = collect(config.source, config.data, config)
    print(collected.summary())
    if not collected.pairs:
        raise UserError(f"{config.data}: no line makes a pair; {target} is not written")
    try:
        write_pairs(collected.pairs, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    print(f"written: {target}")

"""Collects a file of feedback into a file of preference pairs."""

from pathlib import Path

from pydantic import Field

from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.feedback.collecting import Collected, Feedback, collect
from jaxdpo.feedback.preferences import FeedbackConfig


class CollectConfig(FeedbackConfig):
    """The feedback to collect, and the file of the pairs."""

    source: Feedback = Field(description="kind of feedback")
    data: str = Field(description="JSONL file of the feedback")
    out: str = Field(description="JSONL file of the pairs; -o for short")
    overwrite: bool = Field(default=False, description="replace the file if it is there already")


def collect_to_file(config: CollectConfig) -> Collected:
    """Makes pairs of the feedback, prints the counts, and writes the pairs.

    >>> collect_to_file(CollectConfig(source="user_edits", data="drafts.jsonl", out="pairs.jsonl"))

    Returns:
      The pairs, and what made none.

    Raises:
      UserError: If the feedback cannot be read, no line makes a pair, the file cannot be written,
        or another one is in its place.
    """
    target = Path(config.out).expanduser()
    collected = collect(config.source, config.data, config)
    print(collected.summary())
    if not collected.pairs:
        raise UserError(f"{config.data}: no line makes a pair; {target} is not written")
    new = target.with_name(f".{target.name}.new")
    try:
        write_pairs(collected.pairs, new)
        # The same command again may write the same file; anything else there is not ours to lose.
        if target.exists() and not config.overwrite and new.read_bytes() != target.read_bytes():
            raise UserError(
                f"{target}: is there already, and holds something else; set overwrite=true, or "
                "name another file"
            )
        new.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    print(f"written: {target}")
    return collected

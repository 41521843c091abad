"""Supervised examples: a conversation that ends with an answer, in any form that it comes in."""

from collections.abc import Sequence
from typing import Any

from jaxdpo.data.bad_pair import NothingToLearn
from jaxdpo.data.config import Format
from jaxdpo.data.reading.formats import (
    Draft,
    drafts_of,
    format_of,
    native_draft,
    native_messages,
    parted,
    roles_of,
)
from jaxdpo.data.reading.said import Parts
from jaxdpo.data.reading.shapes import is_log, of_log
from jaxdpo.data.reading.single_forms import example
from jaxdpo.data.reading.unread import check_unread


def example_format(record: dict[str, Any]) -> Format | None:
    """Recognises the form of an example, or None if the record holds none."""
    if is_log(record):
        return "logs"
    # Conversations are a preference only with two answers beside them.
    form = format_of(record)
    if form == "sharegpt" and not {"chosen", "rejected"} & record.keys():
        return "examples"
    if form not in (None, "rated"):
        return form
    roles = roles_of(record)
    has_answer = "completion" in roles or "text" in roles
    return "examples" if has_answer or "conversation" in record else None


def example_of(
    record: dict[str, Any], form: Format, margin: float | None, facts: Sequence[str] = ()
) -> Draft:
    """Returns the draft of an example: of a preference, its chosen answer.

    Args:
      record: The record.
      form: The form of the source's records.
      margin: As in `drafts_of`.
      facts: Columns that the user calls facts.

    Raises:
      BadPair: If the record is not in that form.
      NothingToLearn: If its answer was found bad.
    """
    if is_log(record):
        return _single(of_log(record), facts)
    # A record of its own form among others is read as that: each says for itself what it holds.
    own = example_format(record) or form
    if (
        own == "messages"
        and "rejected_message" not in record
        and "rejected" not in roles_of(record)
    ):
        said = native_messages(record)
        return native_draft(record, Parts(said[:-1], said[-1:], ()), facts)
    if own in ("examples", "rated", "logs"):
        return _single(record, facts)
    # Of a preference the chosen answer is the example; a ranked list gives its best.
    draft = drafts_of(record, own, margin, facts)[0]
    if draft.label is False:
        raise NothingToLearn("label false")
    return draft


def _single(record: dict[str, Any], facts: Sequence[str]) -> Draft:
    read = example(record, roles_of(record))
    common, rest = parted(record, read.used)
    if rest:
        # Beside a document there is no prompt that a column could be a part of, or all could be.
        for repeated in check_unread(rest, read.messages, facts):
            del rest[repeated]
    *asked, answer = read.messages
    return Draft(asked, [answer], (), common, rest, is_text=read.is_text)

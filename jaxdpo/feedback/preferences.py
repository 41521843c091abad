"""The record, the settings and the pairs that all sources of feedback share."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.formats import Draft
from jaxdpo.data.reading.messages import parse_message
from jaxdpo.data.reading.said import Said, as_messages, listed, need
from jaxdpo.data.reading.schema import Where, parse_pair
from jaxdpo.errors import nearest

# A pair takes these from a record as they are.
_TAKEN = ("tools", "functions", "split", "chat_template_kwargs")
# These say where the feedback came from; they are kept in the pair's metadata.
_KNOWN = ("annotator", "time", "conversation", "model")
COMMON = ("messages", "metadata", *_KNOWN, *_TAKEN)


class FeedbackConfig(BaseModel):
    """The pairs that feedback makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="criteria: pair all answers whose values differ by this; default: the best "
        "against the worst",
    )
    choice: Literal["shown", "every"] = Field(
        default="shown",
        description="user_choice: the selected output against those shown, or against every one",
    )
    regenerations: Literal["first", "every"] = Field(
        default="first",
        description="regenerations: the accepted attempt against the first rejected, or every one",
    )
    conflicts: Literal["majority", "keep"] = Field(
        default="majority",
        description="where annotators contradict each other: go with most (a tie makes no pair), "
        "or keep every pair",
    )
    test_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of prompts, by hash, that go to TEST where a line names no split",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop", description="at bad lines: stop, or leave them out and count them"
    )


class NoPair(Exception):
    """Well-formed feedback that makes no pair; its short and stable code says why."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


class Preference(NamedTuple):
    """One answer preferred to another.

    Attributes:
      chosen: Messages of the preferred answer, not checked yet.
      rejected: Those of the other.
      scores: Of chosen and rejected, where there are any.
      why: What else is known of the comparison, for the pair's metadata.
    """

    chosen: Sequence[Said]
    rejected: Sequence[Said]
    scores: tuple[float, float] | None = None
    why: Mapping[str, Any] = MappingProxyType({})


def check_keys(record: dict[str, Any], *own: str) -> None:
    """Refuses a record with a key that its source does not have, or without one that it needs.

    Raises:
      BadPair: Naming the key.
    """
    known = (*COMMON, *own)
    for key in record:
        if key not in known:
            hint = nearest(key, known) or "; the user's own fields go under 'metadata'"
            raise BadPair("unknown-key", f"unknown key {show(key)}{hint}")


def answer(record: dict[str, Any], key: str) -> list[Said]:
    """Returns the answer in a field: a string, a message, or messages."""
    return _parsed(need(record, key)[0], key)


def answers(record: dict[str, Any], key: str) -> list[list[Said]]:
    """Returns the answers in a field that lists them."""
    given = need(record, key)[0]
    if not isinstance(given, list) or not given:
        state = "an empty list" if given == [] else kind(given)
        raise BadPair("outputs-type", f"{key} is {state}; write a list of answers")
    return [_parsed(item, f"{key}[{i}]") for i, item in enumerate(given)]


def _parsed(value: Any, field: str) -> list[Said]:
    said = as_messages(value, field, "assistant")
    return [Said(part.field, parse_message(part.message, part.field)) for part in said]


def index_in(record: dict[str, Any], key: str, outputs: Sequence[Any], of: str) -> int:
    """Returns the number in a field that says which of several answers is meant.

    Args:
      record: The record.
      key: The field.
      outputs: The answers.
      of: The field that lists them, for the message.

    Raises:
      BadPair: If it is no number, or none of theirs.
    """
    given = need(record, key)[0]
    # `type`, not `isinstance`: true is an int to Python, and no place in a list.
    if type(given) is not int or not 0 <= given < len(outputs):
        raise BadPair(
            "index", f"{key} is {show(given)}; write the place in {of}, 0 to {len(outputs) - 1}"
        )
    return given


def make_pair(
    record: dict[str, Any], preference: Preference, source: str, where: str, test_fraction: float
) -> PreferencePair:
    """Makes the pair of a preference, checked, with its provenance in `metadata.feedback`.

    Args:
      record: The record that the preference comes from.
      preference: The two answers.
      source: The kind of feedback.
      where: The record's place, `file:line`.
      test_fraction: The share of prompts that go to TEST where the record names no split.

    Raises:
      BadPair: If the prompt or an answer is no good, as a training file would be refused for it.
    """
    messages = need(record, "messages")[0]
    if not isinstance(messages, list) or not messages:
        state = "an empty list" if messages == [] else kind(messages)
        raise BadPair(
            "messages-type", f"messages is {state}; write the prompt as a list of messages"
        )
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise BadPair(
            "prompt-ends-in-answer",
            "messages ends with the assistant's; here it holds the prompt alone",
        )
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise BadPair("metadata-type", f"metadata is {kind(metadata)}; write an object")
    known = {key: record[key] for key in _KNOWN if record.get(key) is not None}
    feedback = {"source": source, "from": where, **known, **preference.why}
    common = {key: record[key] for key in _TAKEN if key in record}
    # The checks of a training file, so that what is collected can always be trained on.
    draft = Draft(
        listed(messages, "messages"),
        preference.chosen,
        preference.rejected,
        {**common, "metadata": {**metadata, "feedback": feedback}},
        scores=preference.scores,
    )
    return parse_pair(draft, Where(where, test_fraction))

"""The record, the settings and the pairs that all sources of feedback share."""

import difflib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.formats import Draft
from jaxdpo.data.reading.messages import parse_message
from jaxdpo.data.reading.said import Said, as_messages, listed, need
from jaxdpo.data.reading.schema import Where, parse_pair

# A pair takes these from a record as they are.
_TAKEN = ("tools", "functions", "split", "chat_template_kwargs")
# These say where the feedback came from; they are kept in the pair's metadata.
_KNOWN = ("annotator", "time", "conversation", "model", "notes", "also")
COMMON = ("messages", "prompt", "metadata", *_KNOWN, *_TAKEN)
# Fields of each source beside the common ones. A field of another source is a mistake; any other
# that is not known is the user's own.
OWN_KEYS: dict[str, tuple[str, ...]] = {
    "expert_edits": ("output", "edited"),
    "user_edits": ("draft", "saved"),
    "user_choice": ("outputs", "selected", "shown", "models", "places"),
    "regenerations": ("attempts", "accepted", "models"),
    "thumbs": ("output", "label"),
    "criteria": ("answers",),
}
# Seconds since 1970 of the years 1973 to 5138: a smaller number is no time of today, and a larger
# one counts milliseconds.
_EPOCH_SECONDS = (1e8, 1e11)


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
    accepted: Literal["selects", "keeps"] = Field(
        default="selects",
        description="events: an accepted answer was also selected from those beside it, or was "
        "only kept, which says nothing of them",
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
    on_error: Literal["stop", "skip"] | None = Field(
        default=None,
        description="at bad lines: stop, or leave them out and count them; default: stop, but a "
        "log of events is read on",
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
      label: Of an answer that was judged by itself, which is `chosen`: whether it was found good.
    """

    chosen: Sequence[Said]
    rejected: Sequence[Said]
    scores: tuple[float, float] | None = None
    why: Mapping[str, Any] = MappingProxyType({})
    label: bool | None = None


def check_keys(record: dict[str, Any], source: str) -> None:
    """Refuses a record with a misspelt key, or with one that belongs to another source.

    Raises:
      BadPair: Naming the key.
    """
    own = OWN_KEYS[source]
    for key in unknown_keys(record, own):
        others = [name for name, keys in OWN_KEYS.items() if key in keys and name != "criteria"]
        if others:
            raise BadPair(
                "unknown-key",
                f"unknown key {show(key)}: {', '.join(others)} have it; {source} reads "
                f"{', '.join(own)}",
            )


def unknown_keys(record: Mapping[str, Any], own: Sequence[str]) -> list[str]:
    """Returns the user's own keys of a record, those that nothing here has a name for.

    Args:
      record: The record.
      own: Fields of its source beside the common ones.

    Raises:
      BadPair: If one is spelt almost as a known key.
    """
    known = (*COMMON, *own)
    found = [key for key in record if key not in known]
    for key in found:
        # "prompt_id" is a field of its own; "promt" is none. Refused, since what it was meant to
        # say would be missing from the pair without a word.
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if close and close[0] not in key.split("_"):
            raise BadPair("unknown-key", f"unknown key {show(key)}; did you mean {close[0]!r}?")
    return found


def asked_in(record: Mapping[str, Any]) -> list[Any]:
    """Returns the messages of a record's prompt: its `messages`, or `prompt` as text or messages.

    Raises:
      BadPair: If there are none, both are there, or they end with the assistant's.
    """
    # Two prompts may contradict each other, so neither goes before the other.
    messages, prompt = record.get("messages"), record.get("prompt")
    if messages is not None and prompt is not None:
        raise BadPair("prompt-twice", "the record has messages and prompt; keep one")
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    name = "messages" if prompt is None else "prompt"
    given = need(dict(record), "messages")[0] if prompt is None else prompt
    if not isinstance(given, list) or not given:
        state = "an empty list" if given == [] else kind(given)
        raise BadPair("messages-type", f"{name} is {state}; write the prompt as a list of messages")
    if isinstance(given[-1], dict) and given[-1].get("role") == "assistant":
        raise BadPair(
            "prompt-ends-in-answer",
            f"{name} ends with the assistant's; here it holds the prompt alone",
        )
    return given


def own_metadata(record: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Returns a record's `metadata` with the keys that nothing here has a name for.

    Args:
      record: The record.
      own: Fields of its source beside the common ones.

    Raises:
      BadPair: If metadata is no object, or says something else of such a key.
    """
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise BadPair("metadata-type", f"metadata is {kind(metadata)}; write an object")
    extra = {key: record[key] for key in unknown_keys(record, own)}
    # Nothing is overwritten: which of the two was meant is not for a program to say.
    for key, value in extra.items():
        if metadata.get(key, value) != value:
            raise BadPair(
                "metadata-twice",
                f"{key} is {show(value)}, but metadata.{key} is {show(metadata[key])}; keep one",
            )
    return {**metadata, **extra}


def moment_of(value: Any) -> datetime | None:
    """Reads a time: ISO 8601 with its offset, or seconds since 1970; None for anything else.

    >>> moment_of(1777885200).isoformat()
    '2026-05-04T09:00:00+00:00'
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = _EPOCH_SECONDS
        return datetime.fromtimestamp(value, UTC) if low <= value < high else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    # Without an offset, events of two servers could not be ordered.
    return moment if moment.tzinfo is not None else None


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
    messages = asked_in(record)
    metadata = own_metadata(record, OWN_KEYS[source])
    known = {key: record[key] for key in _KNOWN if record.get(key) is not None}
    if isinstance(known.get("time"), int | float):
        # One form for all pairs, so that they can be ordered and grouped by day.
        moment = moment_of(known["time"])
        if moment is None:
            raise BadPair("time", f"time is {show(known['time'])}; write seconds since 1970")
        known["time"] = moment.isoformat()
    feedback = {"source": source, "from": where, **known, **preference.why}
    common = {key: record[key] for key in _TAKEN if key in record}
    # The checks of a training file, so that what is collected can always be trained on.
    draft = Draft(
        listed(messages, "messages"),
        preference.chosen,
        preference.rejected,
        {**common, "metadata": {**metadata, "feedback": feedback}},
        scores=preference.scores,
        label=preference.label,
    )
    return parse_pair(draft, Where(where, test_fraction))

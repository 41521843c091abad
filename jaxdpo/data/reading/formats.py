"""The forms that preference records come in: one parsed record → drafts of its pairs.

A draft says who said what, and by which name each part goes in the user's own file; whether that
makes a pair is for `schema` to check. Every record of a file is in one form, which is recognised
from the keys of all of them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.config import Format
from jaxdpo.data.reading import format_parsers as forms
from jaxdpo.data.reading.format_parsers import IGNORED_KEYS, Parts, Said
from jaxdpo.errors import nearest

KEYS_OF: dict[Format, str] = {
    "messages": "messages (the chosen answer last), rejected_message",
    "openai": "input.messages, preferred_output, non_preferred_output",
    "trl": "prompt, chosen, rejected (strings or lists of messages; prompt may be left out)",
    "sharegpt": "conversations, chosen, rejected, each {from, value}",
    "transcript": "chosen, rejected: '\\n\\nHuman: … \\n\\nAssistant: …'",
    "alpaca": "instruction, input, chosen, rejected",
    "ranked": "prompt, completions with a score each (or responses and scores)",
    "token_ids": "prompt_ids, chosen_ids, rejected_ids",
    "labelled": "messages (the answer last), or prompt and completion; label (true or false)",
}
_SCORES = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
# Read alike in every form; what a form does not know otherwise is the user's own.
_COMMON = ("split", "metadata", "tools", "functions", "chat_template_kwargs")
_SCORE_KEYS = tuple(itertools.chain(*_SCORES))
_NATIVE_KEYS = ("messages", "rejected_message", *_COMMON, *_SCORE_KEYS)


@dataclass(frozen=True)
class Draft:
    """A pair as a record has it.

    Attributes:
      prompt: What comes before either answer.
      chosen: The preferred answer.
      rejected: The other.
      common: The record's split, metadata, tools, functions and chat_template_kwargs.
      extra: Its other fields, which are kept as metadata.
      scores: Of chosen and rejected, as they stand there, or None.
      token_ids: Prompt, chosen and rejected where the record has ids in place of messages.
      label: Where it has one answer alone, here as `chosen`: whether that was found good.
    """

    prompt: Sequence[Said]
    chosen: Sequence[Said]
    rejected: Sequence[Said]
    common: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    scores: tuple[Any, Any] | None = None
    token_ids: tuple[Any, Any, Any] | None = None
    label: bool | None = None


# Of each form: the keys that it reads itself, and what reads them.
_KNOWN: dict[Format, tuple[str, ...]] = {
    "openai": ("input", "preferred_output", "non_preferred_output"),
    "trl": ("prompt", "chosen", "rejected"),
    "sharegpt": ("conversations", "chosen", "rejected", "system"),
    "transcript": ("chosen", "rejected"),
    "alpaca": ("instruction", "input", "system", "history", "chosen", "rejected"),
    "ranked": ("prompt", "instruction", "completions", "responses", "scores"),
    "token_ids": tuple(
        f"{part}_{ids}" for part in ("prompt", "chosen", "rejected") for ids in ("ids", "input_ids")
    ),
    "labelled": ("messages", "prompt", "completion", "label"),
}
_READERS: dict[Format, Callable[[dict[str, Any]], Parts]] = {
    "openai": forms.openai,
    "trl": forms.trl,
    "sharegpt": forms.sharegpt,
    "transcript": forms.transcript,
    "alpaca": forms.alpaca,
    "labelled": forms.labelled,
}


def format_of(record: dict[str, Any]) -> Format | None:
    """The form of one record, by its keys and by how its strings begin; None if it has no mark."""
    keys = {key for key, value in record.items() if value is not None}
    marks: list[tuple[Format, set[str]]] = [
        ("openai", {"preferred_output", "non_preferred_output"}),
        ("sharegpt", {"conversations"}),
        ("token_ids", {"chosen_ids", "chosen_input_ids"}),
        ("messages", {"rejected_message"}),
        ("ranked", {"completions", "responses"}),
    ]
    for form, any_of in marks:
        if keys & any_of:
            return form
    if keys & {"chosen", "rejected"}:
        if "instruction" in keys:
            return "alpaca"
        told = (record.get("chosen"), record.get("rejected"))
        dialogues = "prompt" not in keys and all(map(forms.begins_transcript, told))
        return "transcript" if dialogues else "trl"
    if "label" in keys and keys & {"messages", "completion"}:
        return "labelled"
    return "messages" if "messages" in keys else None


def drafts_of(record: dict[str, Any], form: Format, margin: float | None) -> list[Draft]:
    """The pairs that a record makes: one, or of a ranked list as many as `margin` says.

    Args:
      record: The parsed record.
      form: Its form.
      margin: Of a ranked list, every two whose scores differ by this much make a pair; None: the
        best and the worst.

    Raises:
      BadPair: If the record is not in that form.
    """
    if form == "messages":
        return [_native(record)]
    rest = {key: value for key, value in record.items() if key not in _KNOWN[form]}
    common = {key: rest.pop(key) for key in _COMMON if key in rest}
    if form == "ranked":
        return [
            Draft(*parts, common, rest, scores) for parts, scores in forms.ranked(record, margin)
        ]
    scores = _scores(rest)
    if form == "token_ids":
        return [Draft((), (), (), common, rest, scores, forms.token_ids(record))]
    if form == "openai" and isinstance(record.get("input"), dict):
        common |= {k: v for k, v in record["input"].items() if k in ("tools", "functions")}
    label = record.get("label") if form == "labelled" else None
    return [Draft(*_READERS[form](record), common, rest, scores, label=label)]


def ignored_keys(record: dict[str, Any], form: Format) -> set[str]:
    """Fields of a record that say how an answer was sampled, and are not kept."""
    asked = record.get("input") if form == "openai" else record if form == "messages" else None
    return set(asked) & IGNORED_KEYS if isinstance(asked, dict) else set()


def _scores(rest: dict[str, Any]) -> tuple[Any, Any] | None:
    """Takes the scores out of a record's other fields."""
    if not rest:
        return None
    for names in _SCORES:
        if any(name in rest for name in names):
            chosen, rejected = (rest.pop(name, None) for name in names)
            return None if chosen is None and rejected is None else (chosen, rejected)
    if rest.get("margin") is not None and isinstance(rest["margin"], int | float):
        return rest.pop("margin"), 0.0
    return None


def native_messages(record: dict[str, Any], *needed: str) -> list[Said]:
    """The messages of a record in our own form, its keys checked.

    Raises:
      BadPair: For an unknown key, or one of `needed` that is missing.
    """
    for key in record:
        if key not in _NATIVE_KEYS and key not in IGNORED_KEYS:
            hint = nearest(key, (*_NATIVE_KEYS, *IGNORED_KEYS)) or (
                "; the user's own fields go under 'metadata'"
            )
            raise BadPair("unknown-key", f"unknown key {show(key)}{hint}")
    messages = forms.need(record, "messages", *needed)[0]
    if not isinstance(messages, list):
        raise BadPair("messages-type", f"messages is {kind(messages)}; write a list of messages")
    if len(messages) < 2:
        raise BadPair(
            "messages-short",
            f"messages holds {len(messages)} of at least 2: the prompt, and the chosen answer last",
        )
    return forms.listed(messages, "messages")


def _native(record: dict[str, Any]) -> Draft:
    said = native_messages(record, "rejected_message")
    common = {key: value for key, value in record.items() if key in _COMMON}
    scores = _scores({key: value for key, value in record.items() if key in _SCORE_KEYS})
    other = [Said("rejected_message", record["rejected_message"])]
    return Draft(said[:-1], said[-1:], other, common, {}, scores)

"""The forms that records come in: one parsed record → drafts of its pairs, or of an example.

A draft says who said what, and by which name each part goes in the user's own file; whether that
makes a pair is for `schema` to check. Every record of a file is in one form, which is recognised
from the keys of all of them.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.config import Format
from jaxdpo.data.reading import pair_forms
from jaxdpo.data.reading.asked import RoleKeys
from jaxdpo.data.reading.columns import keys_by_role, spelled, typo_of
from jaxdpo.data.reading.comparing import answers_key, compared, ranked, sides_of
from jaxdpo.data.reading.conversation import turns_of
from jaxdpo.data.reading.names import NAMES_OF, SCORE_PAIRS
from jaxdpo.data.reading.pair_forms import IGNORED_KEYS, READERS, Read
from jaxdpo.data.reading.said import Parts, Said, listed, need
from jaxdpo.data.reading.single_forms import labelled, token_ids
from jaxdpo.data.reading.unread import check_unread

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
    "compared": "prompt, two answers (response_a, response_b), and preferred",
    "rated": "prompt, response and score; rows one after the other that ask the same are compared",
}
# Read alike in every form; what a form does not know otherwise is the user's own.
COMMON = ("split", "metadata", "tools", "functions", "chat_template_kwargs")
_NATIVE_SCORES = ("chosen_score", "rejected_score")
_NATIVE_KEYS = ("messages", "rejected_message", *COMMON, *_NATIVE_SCORES)
_TOKEN_KEYS = ("chosen_ids", "chosen_input_ids")


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
      is_text: Whether `chosen` is text that answers nothing, such as a document.
    """

    prompt: Sequence[Said]
    chosen: Sequence[Said]
    rejected: Sequence[Said]
    common: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    scores: tuple[Any, Any] | None = None
    token_ids: tuple[Any, Any, Any] | None = None
    label: bool | None = None
    is_text: bool = False


def roles_of(record: Mapping[str, Any]) -> RoleKeys:
    """Finds the columns of each role in a record; columns that are null are not there."""
    return keys_by_role(_keys(record))


def _keys(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple([key for key, value in record.items() if value is not None])


def format_of(record: dict[str, Any]) -> Format | None:
    """Recognises the form of one record, by its keys and by how its strings begin.

    Returns:
      The form, or None if the record has no mark of one that holds preferences.
    """
    # Columns decide nearly always; transcripts and prompts without a column are told by their text.
    form, begins = _format_by_keys(_keys(record))
    if begins and form == "trl":
        told = (record.get("chosen"), record.get("rejected"))
        return "transcript" if all(map(pair_forms.begins_transcript, told)) else "trl"
    if begins and form == "ranked" and answers_key(record, roles_of(record)) is None:
        return _without_list(_keys(record))
    return form


@functools.lru_cache(maxsize=1024)
def _format_by_keys(keys: tuple[str, ...]) -> tuple[Format | None, bool]:
    """Recognises a form by the columns alone, and says whether the values must be looked at, too.

    A file has few sets of columns, so this is worked out once for each.
    """
    # The order matters: a sure mark goes before one that other forms have as well.
    present = set(keys)
    if present & {"preferred_output", "non_preferred_output"}:
        return "openai", False
    if present & {"rejected_message", *_TOKEN_KEYS}:
        return ("messages" if "rejected_message" in present else "token_ids"), False
    roles = keys_by_role(keys)
    has_chosen, has_rejected = "chosen" in roles, "rejected" in roles
    # ms-swift: the chosen answer ends the messages.
    if has_rejected and not has_chosen and "messages" in present:
        return "messages", False
    if has_chosen or has_rejected:
        if "conversations" in present and {"chosen", "rejected"} & present:
            return "sharegpt", False
        return ("alpaca", False) if "instruction" in present else ("trl", "prompt" not in present)
    # A label beside two answers is their verdict, so this comes after them.
    if "label" in roles and present & {"messages", "conversations", *_names("completion")}:
        return "labelled", False
    if sides_of(dict.fromkeys(keys)) is not None:
        return "compared", False
    if present & {"completions", "responses"}:
        return "ranked", False
    # `answers` and `output` may as well hold one answer: only lists are ranked.
    return ("ranked", True) if "answers" in roles else (_without_list(keys), False)


def _without_list(keys: tuple[str, ...]) -> Format | None:
    if "conversations" in keys:
        return "sharegpt"
    if {"prompt", "completion", "score"} <= keys_by_role(keys).keys():
        return "rated"
    return "messages" if "messages" in keys else None


def _names(role: str) -> tuple[str, ...]:
    return NAMES_OF[role]  # pyright: ignore[reportArgumentType]


def drafts_of(
    record: dict[str, Any], form: Format, margin: float | None, facts: Sequence[str] = ()
) -> list[Draft]:
    """Returns the pairs that a record makes: one, or of a ranked list as many as `margin` says.

    Args:
      record: The parsed record.
      form: Its form.
      margin: Of a ranked list, every two whose scores differ by this much make a pair; None: the
        best and the worst.
      facts: Columns that the user calls facts about the record.

    Raises:
      BadPair: If the record is not in that form.
      NothingToLearn: If it is, and prefers neither answer.
    """
    if form == "messages":
        return [_native(record, facts)]
    roles = roles_of(record)
    if form == "ranked":
        found = ranked(record, roles, margin)
        return [_drafted(record, each.read, facts, each.scores) for each in found]
    if form == "compared":
        return [_drafted(record, *_swapped(compared(record, roles), facts))]
    # Ids have no messages in which a column's text could be found again.
    if form == "token_ids":
        ids, used = token_ids(record)
        common, rest = parted(record, used)
        scores = take_scores(rest)
        return [Draft((), (), (), common, rest, scores, ids)]
    if form == "labelled":
        read, label = labelled(record, roles)
        return [_drafted(record, read, facts, label=label)]
    # The other forms differ in where messages stand, and in nothing else.
    draft = _drafted(record, READERS[form](record, roles), facts)
    if form == "openai":
        asked = record["input"]
        draft.common.update({k: v for k, v in asked.items() if k in ("tools", "functions")})
    return [draft]


def _swapped(found: tuple[Read, Any], facts: Sequence[str]) -> tuple[Read, Sequence[str], Any]:
    read, scores = found
    return read, facts, scores


def _drafted(
    record: dict[str, Any],
    read: Read,
    facts: Sequence[str],
    scores: tuple[float, float] | None = None,
    label: bool | None = None,
) -> Draft:
    """Makes a draft of what was read, and looks at what was not."""
    common, rest = parted(record, read.used)
    given = take_scores(rest)
    parts = read.parts
    if rest:
        said = [*parts.prompt, *parts.chosen, *parts.rejected]
        for repeated in check_unread(rest, said, facts, read.prompt_is_named):
            del rest[repeated]
    return Draft(*parts, common, rest, scores or given, label=label)


def drafted(
    record: dict[str, Any], read: Read, facts: Sequence[str], scores: tuple[float, float]
) -> Draft:
    """Makes a draft of a pair that was read from two records, the first of which has the better.

    Args:
      record: That record.
      read: The pair's messages.
      facts: Columns that the user calls facts.
      scores: Of chosen and rejected.

    Raises:
      BadPair: If another column of the record might be a part of what was asked.
    """
    return _drafted(record, read, facts, scores)


def parted(record: dict[str, Any], used: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the columns that a form did not read: those of every form, and the user's own."""
    # Records of nothing but prompt and answers are common enough to be told first.
    if len(used) >= len(record) and used >= record.keys():
        return {}, {}
    rest = {key: value for key, value in record.items() if key not in used}
    common = {key: rest.pop(key) for key in COMMON if key in rest}
    return common, rest


def ignored_keys(record: dict[str, Any], form: Format) -> set[str]:
    """Returns a record's fields that say how an answer was sampled, and are not kept."""
    asked = record.get("input") if form in ("openai", "logs") else record
    if not isinstance(asked, dict):
        return set()
    if form in ("openai", "logs"):
        return set(asked) - {"messages", "tools", "functions"}
    return set(asked) & IGNORED_KEYS if form == "messages" else set()


def take_scores(rest: dict[str, Any]) -> tuple[Any, Any] | None:
    """Takes the scores out of a record's other fields; one score alone is the user's own field."""
    if not rest:
        return None
    at = {spelled(key): key for key, value in rest.items() if value is not None}
    for first, second in SCORE_PAIRS:
        if first in at and second in at:
            return rest.pop(at[first]), rest.pop(at[second])
    # A margin alone is a difference of scores, whatever they were.
    margin = rest.get("margin")
    if isinstance(margin, int | float) and not isinstance(margin, bool):
        return rest.pop("margin"), 0.0
    return None


def _native(record: dict[str, Any], facts: Sequence[str]) -> Draft:
    # Most lines of our own form have only its keys, and need no look at names.
    roles = {} if record.keys() <= set(_NATIVE_KEYS) else roles_of(record)
    if "rejected_message" not in record and "rejected" in roles:
        read = pair_forms.conversation_pair(record, roles)
        return _drafted(record, read, facts)
    said = native_messages(record)
    need(record, "rejected_message")
    other = [Said("rejected_message", record["rejected_message"])]
    return native_draft(record, Parts(said[:-1], said[-1:], other), facts)


def native_messages(record: dict[str, Any]) -> list[Said]:
    """Returns the messages of a record in our own form, its keys checked.

    Raises:
      BadPair: For a key that is probably misspelt, or if there are no messages.
    """
    for key in record:
        if key in _NATIVE_KEYS or key in IGNORED_KEYS:
            continue
        # A field of the future is counted; a misspelt field of today would lose what it holds.
        hint = typo_of(key, _NATIVE_KEYS)
        if hint or not key.strip():
            raise BadPair("unknown-key", f"unknown key {show(key)}{hint}")
    messages = need(record, "messages")[0]
    if isinstance(messages, str | dict):
        messages = _unpacked(messages)
    if not isinstance(messages, list):
        raise BadPair("messages-type", f"messages is {kind(messages)}; write a list of messages")
    if len(messages) < 2:
        raise BadPair(
            "messages-short",
            f"messages holds {len(messages)} of at least 2: the prompt, and the chosen answer last",
        )
    if any(isinstance(each, dict) and "from" in each for each in messages):
        turns = (turns_of(each, f"messages[{i}]") for i, each in enumerate(messages))
        return [said for each in turns for said in each]
    return listed(messages, "messages")


def _unpacked(messages: Any) -> Any:
    """Reads messages that stand as JSON text or as a struct of lists; others are not changed."""
    from jaxdpo.data.reading.conversation import said_in

    said = said_in(messages, "messages", "user")
    # Mere text is one message of the user's, a single message is itself: neither is a list.
    return [each.message for each in said] if len(said) > 1 else messages


def native_draft(record: dict[str, Any], parts: Parts, facts: Sequence[str]) -> Draft:
    """Makes a draft of a record in our own form.

    Args:
      record: The record.
      parts: Its messages.
      facts: Columns that the user calls facts.

    Raises:
      BadPair: If another column of it might be a part of what was asked.
    """
    common = {key: value for key, value in record.items() if key in COMMON}
    if record.keys() <= set(_NATIVE_KEYS):
        scores = take_scores({k: v for k, v in record.items() if k in _NATIVE_SCORES})
        return Draft(*parts, common, {}, scores)
    from jaxdpo.data.reading.asked import with_system

    prompt, used = with_system(list(parts.prompt), record, roles_of(record))
    known = {"messages", "rejected_message", *COMMON, *used}
    rest = {k: v for k, v in record.items() if k not in known and k not in IGNORED_KEYS}
    scores = take_scores(rest)
    parts = parts._replace(prompt=prompt)
    for repeated in check_unread(rest, [*prompt, *parts.chosen, *parts.rejected], facts):
        del rest[repeated]
    return Draft(*parts, common, rest, scores)

"""The forms with one answer, or none: labelled answers, supervised examples, token ids."""

from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.reading import rendered
from jaxdpo.data.reading.asked import (
    Asked,
    RoleKeys,
    answer_in,
    asked_in,
    is_empty,
    role_of,
    with_system,
)
from jaxdpo.data.reading.conversation import as_roles, said_in
from jaxdpo.data.reading.pair_forms import Read, check_turns
from jaxdpo.data.reading.said import Parts, Said, need

_PARTS = ("prompt", "chosen", "rejected")
# Below this many ids a completion may begin like its prompt by chance.
_TELLING_IDS = 8


def labelled(record: dict[str, Any], roles: RoleKeys) -> tuple[Read, bool]:
    """Reads one answer and whether it was found good: KTO's form.

    Returns:
      Its messages, and the label.
    """
    key = next(iter(roles.get("label", ())), "label")
    label = need(record, key)[0]
    # 0 and 1 are what a table makes of false and true, and 0 == False.
    if not isinstance(label, int | float) or label not in (False, True):
        raise BadPair("label-type", f"{key} is {show(label)}; write true or false")
    found = bool(label)
    # Both would say the answer, perhaps in two ways.
    whole = record.get("messages")
    if whole is not None and any(record.get(k) is not None for k in ("prompt", "completion")):
        raise BadPair("answer-twice", "the record has messages and prompt or completion; keep one")
    read = example(record, roles)
    parts = Parts(read.messages[:-1], read.messages[-1:], ())
    return Read(parts, read.used | {key}), found


class Example(NamedTuple):
    """A conversation that ends with an answer, and the columns that it was read from.

    Attributes:
      messages: The conversation; of plain text, the text alone, as the assistant's.
      used: The columns.
      is_text: Whether it is plain text, such as a document.
    """

    messages: list[Said]
    used: frozenset[str]
    is_text: bool = False


def example(record: dict[str, Any], roles: RoleKeys) -> Example:
    """Reads a conversation: as messages, as turns, or as a prompt and its completion.

    Raises:
      BadPair: If the record holds none.
    """
    if record.get("messages") is not None:
        messages = as_roles(said_in(record["messages"], "messages", "user", whole=True))
        messages, used = with_system(messages, record, roles)
        return Example(messages, used | {"messages"})
    # A conversation may end with its answer, or have it in a column of its own.
    asked = asked_in(record, roles)
    completion = next(iter(roles.get("completion", ())), None)
    if completion is None and "conversations" in record:
        check_turns(record["conversations"], "conversations")
    if completion is None and asked.messages and role_of(asked.messages[-1]) == "assistant":
        messages, used = with_system(asked.messages, record, roles)
        return Example(messages, used | asked.used)
    if completion is None and "text" in roles and not asked.messages:
        return _text(record, roles)
    if not asked.messages:
        need(record, "prompt")
    answer = need(record, completion or "completion")[0]
    said = answer_in(answer, completion or "completion", asked)
    said, reasoning = _with_reasoning(said, record, roles)
    prompt, used = with_system(asked.messages, record, roles)
    used = used | asked.used | reasoning | {completion or "completion"}
    return Example([*prompt, *said], used)


def _with_reasoning(
    answer: list[Said], record: dict[str, Any], roles: RoleKeys
) -> tuple[list[Said], frozenset[str]]:
    """Puts what the model thought, where a column has it, beside its answer."""
    key = next((key for key in roles.get("reasoning", ()) if not is_empty(record[key])), None)
    text = None if key is None else record[key]
    if key is None or len(answer) != 1 or not isinstance(text, str):
        return answer, frozenset()
    said = answer[0]
    # What the message says itself goes before a column.
    if "reasoning_content" in said.message:
        return answer, frozenset()
    message = {**said.message, "reasoning_content": text}
    return [Said(said.field, message)], frozenset([key])


def _text(record: dict[str, Any], roles: RoleKeys) -> Example:
    key = roles["text"][0]
    text = need(record, key)[0]
    if not isinstance(text, str):
        raise BadPair("content-type", f"{key} is {kind(text)}, {show(text)}; write a string")
    messages = rendered.messages_of(text, key)
    if messages is None:
        # A document: nothing was asked, so no template has a part in it.
        said = [Said(key, {"role": "assistant", "content": text})]
        return Example(said, frozenset([key]), is_text=True)
    said = [Said(f"{key} turn {i + 1}", each) for i, each in enumerate(messages)]
    said, used = with_system(said, record, roles)
    return Example(said, used | {key})


def prompt_alone(record: dict[str, Any], roles: RoleKeys) -> Asked:
    """Reads a prompt from a record that may hold no answer.

    Raises:
      BadPair: If it holds no prompt either.
    """
    asked = asked_in(record, roles)
    if not asked.messages:
        raise BadPair("no-prompt", f"has {', '.join(record)}; write messages, or a prompt")
    messages, used = with_system(asked.messages, record, roles)
    return Asked(messages, used | asked.used, asked.rendered)


def token_ids(record: dict[str, Any]) -> tuple[tuple[Any, Any, Any], frozenset[str]]:
    """Reads ids that were tokenised elsewhere: prompt, chosen and rejected.

    Some tools write the prompt's ids before those of each answer; they are taken off, so that the
    prompt is not trained as an answer.

    Returns:
      The ids, and the columns that are read or that say the same in another way.

    Raises:
      BadPair: If they are no lists of ids, or it is not clear whether the prompt is among them.
    """
    ids, used = [], set()
    for part in _PARTS:
        name = f"{part}_ids" if f"{part}_ids" in record else f"{part}_input_ids"
        (value,) = need(record, name)
        if not isinstance(value, list) or not all(type(id) is int and id >= 0 for id in value):
            raise BadPair("token-ids", f"{name} is {show(value)}; write a list of token ids")
        if not value:
            raise BadPair("token-ids", f"{name} is empty; write at least one token id")
        ids.append(tuple(value))
        # The text that the ids stand for, and what trainers write beside them.
        used |= {name, part, f"{part}_attention_mask", f"{part}_labels", f"{part}_text"}
    prompt, chosen, rejected = ids
    return (prompt, *_without_prompt(prompt, chosen, rejected)), frozenset(used)


def _without_prompt(prompt: tuple, chosen: tuple, rejected: tuple) -> tuple[tuple, tuple]:
    # Older trainers tokenise prompt and answer together and mask the prompt by labels of -100;
    # those labels are not needed where the prompt's ids are there.
    count = len(prompt)
    begins = [answer[:count] == prompt for answer in (chosen, rejected)]
    if not any(begins):
        return chosen, rejected
    if not all(begins) or count < _TELLING_IDS or min(len(chosen), len(rejected)) <= count:
        which = " and ".join(
            name for name, repeats in zip(("chosen", "rejected"), begins, strict=True) if repeats
        )
        raise BadPair(
            "token-ids-prompt",
            f"{which} begins with the {count} ids of the prompt, which would be trained as an "
            "answer; write the answers' own ids",
        )
    return chosen[count:], rejected[count:]

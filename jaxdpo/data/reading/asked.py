"""The prompt of a record: whichever of its columns say what the model was asked, all of them.

A record may say it in one column or in several: an instruction and its input, a system prompt, the
turns before. What belongs together by a known form is put together; what might belong and has no
known place is not guessed at. It stays among the record's other columns, where `unread.py` refuses
it by name unless its text stands in the prompt already.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.config import Role
from jaxdpo.data.reading import rendered
from jaxdpo.data.reading.conversation import as_roles, is_plain, said_in
from jaxdpo.data.reading.said import Said

RoleKeys = dict[Role, tuple[str, ...]]
# Answers that may be JSON text of messages, or rendered, begin so.
_MAY_BE_MARKED = re.compile(r"\s*[<\[{]")
# Those that end in a template's mark end so.
_MAY_END = (">", "\n", " ")
# Text that an instruction is followed by, in Alpaca's and in Dolly's form.
_INPUTS = ("input", "context")


class Asked(NamedTuple):
    """A prompt, and where it was found.

    Attributes:
      messages: The prompt; none where the record has no column for it.
      used: The columns that it was read from.
      rendered: Whether a chat template had rendered it, and perhaps the answers with it.
    """

    messages: list[Said]
    used: frozenset[str]
    rendered: bool = False


def is_empty(value: Any) -> bool:
    """Tells the values that stand for nothing: null, and empty text, lists and objects."""
    return value is None or value == "" or value == [] or value == {}


def asked_in(record: dict[str, Any], roles: RoleKeys) -> Asked:
    """Finds the prompt of a record.

    Args:
      record: The record.
      roles: Its columns by role.

    Raises:
      BadPair: If a column of the prompt holds neither text nor messages.
    """
    columns = roles.get("prompt", ())
    if len(columns) == 1 and "history" not in roles:
        # The usual record; what follows comes to the same.
        (key,), value = columns, record[columns[0]]
        if isinstance(value, str) and value and is_plain(value, key):
            return Asked([Said(key, {"role": "user", "content": value})], frozenset(columns))
    named = [key for key in columns if not is_empty(record[key])]
    texts = [key for key in named if _is_text(record[key], key)]
    lists = [key for key in named if key not in texts]
    history = next((key for key in roles.get("history", ()) if not is_empty(record[key])), None)
    # Messages say more than text: they have roles, and often the text among them.
    messages: list[Said] = []
    used: set[str] = set()
    was_rendered = False
    if lists:
        messages = as_roles(said_in(record[lists[0]], lists[0], "user", whole=True))
        used.add(lists[0])
        was_rendered = isinstance(record[lists[0]], str)
    # A conversation that ends with an answer, or with the system's words, is what comes before a
    # question; one that ends with the user's is a prompt by itself.
    if texts and (not messages or role_of(messages[-1]) in ("assistant", "system", "tool")):
        taken = _instruction_keys(texts)
        question = "\n".join(record[key] for key in taken)
        messages = [*messages, Said(taken[0], {"role": "user", "content": question})]
        used.update(taken)
    if history is not None and _reads_history(record[history], messages):
        messages = [*_turns_before(record[history], history), *messages]
        used.add(history)
    if not messages and not named and texts == [] and _has_empty_prompt(record, roles):
        # An empty prompt is a prompt: the answer is what the model says unasked.
        key = next(key for key in roles["prompt"] if record[key] == "")
        return Asked([Said(key, {"role": "user", "content": ""})], frozenset([key]))
    return Asked(messages, frozenset(used), was_rendered)


def _has_empty_prompt(record: dict[str, Any], roles: RoleKeys) -> bool:
    return any(record[key] == "" for key in roles.get("prompt", ())[:1])


def _is_text(value: Any, key: str) -> bool:
    """Tells mere text from messages, also where those stand as JSON or rendered text."""
    if not isinstance(value, str):
        if not isinstance(value, list | dict):
            raise BadPair("content-type", f"{key} is {kind(value)}, {show(value)}; write a string")
        return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
    return is_plain(value, key)


def _instruction_keys(texts: Sequence[str]) -> list[str]:
    """Chooses the column of the question, and with an instruction that of its input."""
    # Only these two are known to belong together, and in which order.
    if "instruction" in texts:
        inputs = [key for key in _INPUTS if key in texts]
        if len(inputs) == 1:
            return ["instruction", *inputs]
    return [texts[0]]


def _reads_history(value: Any, messages: Sequence[Said]) -> bool:
    # Text of earlier turns has no roles. As the only column of a prompt it is the prompt.
    return isinstance(value, list | dict) or not messages


def _turns_before(value: Any, name: str) -> list[Said]:
    """Reads earlier turns: pairs of question and answer, or messages in any form."""
    if isinstance(value, list) and any(isinstance(turn, list) for turn in value):
        turns = []
        for i, turn in enumerate(value):
            if not isinstance(turn, list) or len(turn) != 2:
                raise BadPair("message-type", f"{name}[{i}] is no [question, answer]")
            for role, content in zip(("user", "assistant"), turn, strict=True):
                turns.append(Said(f"{name}[{i}]", {"role": role, "content": content}))
        return turns
    if not isinstance(value, str | list | dict):
        raise BadPair("messages-type", f"{name} is {kind(value)}; write [[question, answer], …]")
    return as_roles(said_in(value, name, "user", whole=True))


def role_of(said: Said) -> Any:
    """Returns the role of a message that is still to be checked, if it has one."""
    return said.message.get("role") if isinstance(said.message, dict) else None


def with_system(
    messages: list[Said], record: dict[str, Any], roles: RoleKeys
) -> tuple[list[Said], frozenset[str]]:
    """Puts the record's system prompt before its messages.

    Args:
      messages: The prompt as it was found.
      record: The record.
      roles: Its columns by role.

    Returns:
      The messages, and the columns that were read.

    Raises:
      BadPair: If it is no text, or the messages begin with another one.
    """
    if "system" not in roles:
        return messages, frozenset()
    named = [key for key in roles["system"] if not is_empty(record[key])]
    if not named:
        return messages, frozenset()
    key, value = named[0], record[named[0]]
    said = said_in(value, key, "system") if isinstance(value, str | list | dict) else []
    if len(said) != 1 or role_of(said[0]) not in ("system", "developer"):
        raise BadPair("content-type", f"{key} is {kind(value)}, {show(value)}; write a string")
    if messages and role_of(messages[0]) in ("system", "developer"):
        given = messages[0].message.get("content")
        if given != said[0].message.get("content"):
            raise BadPair(
                "system-twice",
                f"{key} is {show(value)}, but the messages begin with another system prompt, "
                f"{show(given)}; keep one, or set data.columns={{metadata: {key}}}",
            )
        return messages, frozenset([key])
    return [said[0], *messages], frozenset([key])


def plain_answer(value: Any, name: str) -> Said | None:
    """Reads an answer that is mere text, which most are; None where more must be looked at.

    Args:
      value: What stands in the record.
      name: The field it stands in.
    """
    if not isinstance(value, str) or _MAY_BE_MARKED.match(value) or value[-1:] in _MAY_END:
        return None
    return Said(name, {"role": "assistant", "content": value})


def answer_in(value: Any, name: str, asked: Asked) -> list[Said]:
    """Reads an answer: text, a message or several, without what a template put around it.

    An answer that begins with what was asked is returned as the whole conversation.

    Args:
      value: What stands in the record.
      name: The field it stands in.
      asked: Its prompt.

    Raises:
      BadPair: If it is no answer.
    """
    if not isinstance(value, str):
        return as_roles(said_in(value, name, "assistant"))
    # A script of `User:` and `Assistant:` may well be an answer; marks of tokens are none.
    sure = value.lstrip().startswith(("<|", "<｜", "<bos>", "<start_of_turn>", "<s>", "[INST]"))
    if sure or not asked.messages:
        messages = rendered.messages_of(value, name, is_answer=True)
        if messages:
            return [Said(f"{name} turn {i + 1}", each) for i, each in enumerate(messages)]
    (first, *others) = said = as_roles(said_in(value, name, "assistant"))
    if others or first.message.get("content") != value:
        return said
    text = rendered.answer_of(value, asked.rendered)
    return [Said(name, {"role": "assistant", "content": text})]

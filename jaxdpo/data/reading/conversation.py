"""A value of a record → the messages that it says.

Who said what comes as text, as one message, as a list of messages or of ShareGPT's turns, as a
struct of lists (which is how `datasets` stores a list of structs), as JSON text of any of these, or
as text that a chat template has rendered.
"""

import ast
import json
import re
from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.reading import rendered
from jaxdpo.data.reading.said import Said, listed

_ROLE_OF = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"system": "system", "observation": "tool", "tool": "tool", "function_response": "tool"},
    **{"chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "bot": "assistant"},
    **{"model": "assistant", "prompter": "user", "developer": "system", "ipython": "tool"},
}
_OWN_ROLES = ("user", "assistant", "system", "tool")
# JSON text of messages begins so; text of any other JSON is text.
_MAY_BE_JSON = re.compile(
    r"\s*(?:\[\s*)?\{\s*[\"'](?:role|from|content|value|messages|id|name)[\"']"
)
_TURN_KEYS = (("role", "content"), ("from", "value"))
# What a message has in place of text.
_OTHER_CONTENT = ("tool_calls", "function_call", "refusal")


def said_in(value: Any, name: str, role: str, whole: bool = False) -> list[Said]:
    """Returns the messages that a value says.

    Args:
      value: Text, a message, a list of messages, a struct of lists, or JSON text of those.
      name: Where it stands, for messages.
      role: Who says what stands there as mere text.
      whole: Whether text is a prompt or a whole conversation, that may have been rendered already.

    Raises:
      BadPair: If it is none of these.
    """
    # Text is looked into only as far as its first characters call for.
    if isinstance(value, str):
        if _MAY_BE_JSON.match(value):
            decoded = _from_json(value, name)
            if decoded is not None:
                return said_in(decoded, name, role)
        if whole and (messages := rendered.messages_of(value, name)) is not None:
            return [Said(f"{name} turn {i + 1}", each) for i, each in enumerate(messages)]
        return [Said(name, {"role": role, "content": value})]
    if isinstance(value, dict):
        if (turns := _turns_of_struct(value)) is not None:
            return said_in(turns, name, role)
        if isinstance(value.get("messages"), list):
            return said_in(value["messages"], f"{name}.messages", role)
        return turns_of(value, name)
    if isinstance(value, list) and value:
        if len(value) == 1 and isinstance(value[0], str):
            return said_in(value[0], f"{name}[0]", role, whole)
        if all(isinstance(item, dict) and "role" in item for item in value):
            return listed(value, name)
        return [said for i, item in enumerate(value) for said in turns_of(item, f"{name}[{i}]")]
    state = "an empty list" if value == [] else kind(value)
    raise BadPair("messages-type", f"{name} is {state}; write a string, or a list of messages")


def is_plain(text: str, name: str) -> bool:
    """Tells mere text from messages as JSON and from a rendered conversation.

    Args:
      text: The text.
      name: The field it stands in, for messages.

    Raises:
      BadPair: If it is a conversation that cannot be read.
    """
    if _MAY_BE_JSON.match(text) and _from_json(text, name) is not None:
        return False
    return rendered.messages_of(text, name) is None


def _from_json(text: str, name: str) -> Any:
    """Decodes JSON text, or Python's spelling of it, if it holds messages; else returns None."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        try:
            # What `str()` makes of a list, as it stands in many a CSV file.
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return _refuse_if_messages(text, name)
    # All of it must be messages: an answer may well be JSON with a `role` in it.
    items = value if isinstance(value, list) else [value]
    return value if items and all(map(_is_turn, items)) else None


def _is_turn(item: Any) -> bool:
    """Tells a message from other JSON, such as an answer `{"role": "admin"}`."""
    if not isinstance(item, dict):
        return False
    if isinstance(item.get("messages"), list):
        return bool(item["messages"]) and all(map(_is_turn, item["messages"]))
    if "from" in item and "value" in item:
        return item["from"] in (*_ROLE_OF, "function_call")
    speaks = "content" in item or any(item.get(key) for key in _OTHER_CONTENT)
    role = item.get("role")
    return speaks and isinstance(role, str) and (role in _ROLE_OF or role == "function")


def _refuse_if_messages(text: str, name: str) -> None:
    # NumPy prints a list of messages without commas; nothing reads that back safely.
    keys = re.findall(r"[\"'](role|from|content|value)[\"']\s*:", text)
    if {"role", "content"} <= set(keys) or {"from", "value"} <= set(keys):
        raise BadPair(
            "json-text",
            f"{name} looks like messages written as text, and cannot be read: {show(text)}; write "
            "a list of messages, or its JSON",
        )


def _turns_of_struct(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Turns `{"role": [...], "content": [...]}` into a list of messages."""
    # `datasets` before 4 turned every list of structs into a struct of lists.
    for keys in _TURN_KEYS:
        lists = [value.get(key) for key in keys]
        if all(isinstance(each, list) for each in lists):
            count = len(lists[0] or [])
            columns = {
                key: item
                for key, item in value.items()
                if isinstance(item, list) and len(item) == count
            }
            if all(key in columns for key in keys):
                return [
                    {key: item[i] for key, item in columns.items() if item[i] is not None}
                    for i in range(count)
                ]
    return None


def turns_of(item: Any, field: str) -> list[Said]:
    """Returns the message of one turn, or its two: `{"input": …, "output": …}` is a question with
    its answer.

    Args:
      item: A message with `role` and `content`, a turn with `from` and `value`, or both.
      field: Where it stands.

    Raises:
      BadPair: If a turn's sender is unknown.
    """
    if not isinstance(item, dict) or "role" in item:
        return [Said(field, item)]
    if {"from", "value"} <= item.keys():
        return [Said(field, _from_turn(item, field))]
    if item.keys() == {"input", "output"}:
        both = zip(("user", "assistant"), ("input", "output"), strict=True)
        return [Said(f"{field}.{key}", {"role": role, "content": item[key]}) for role, key in both]
    return [Said(field, item)]


def _from_turn(turn: dict[str, Any], field: str) -> dict[str, Any]:
    rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
    # Weights and ids beside the two are looked at as those of any message.
    sender, value = turn["from"], turn["value"]
    if sender == "function_call":
        return {"role": "assistant", "tool_calls": _calls_of(value, field), **rest}
    if not isinstance(sender, str) or sender.lower() not in _ROLE_OF:
        known = ("system", "human", "gpt", "user", "assistant", "tool", "observation")
        raise BadPair(
            "unknown-role",
            f"{field}.from is {show(sender)}; write one of {', '.join((*known, 'function_call'))}",
        )
    return {"role": _ROLE_OF[sender.lower()], "content": value, **rest}


def _calls_of(value: Any, field: str) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (json.JSONDecodeError, RecursionError):
        calls = None
    # Parallel calls stand in one turn, as a list.
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise BadPair(
            "tool-call-type", f'{field}.value is no call; write {{"name": …, "arguments": …}}'
        )
    return [{"type": "function", "function": call} for call in calls]


def as_roles(said: list[Said]) -> list[Said]:
    """Gives messages of other tools the roles that are used here: `human` becomes `user`."""
    if all(isinstance(each[1], dict) and each[1].get("role") in _OWN_ROLES for each in said):
        return said
    return [
        Said(field, {**message, "role": _ROLE_OF[message["role"].lower()]})
        if isinstance(message, dict)
        and isinstance(role := message.get("role"), str)
        and role not in _OWN_ROLES
        and role.lower() in _ROLE_OF
        else Said(field, message)
        for field, message in said
    ]

"""One message, tool call or tool definition of a record, checked and made uniform."""

import json
from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.pairs import SAMPLED, Message
from jaxdpo.errors import nearest

ROLES = ("system", "user", "assistant", "tool")
# What a model thought before it answered, by the names that chat templates read it under.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_MESSAGE_KEYS = {
    "system": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "name", "tool_calls", SAMPLED, *REASONING_KEYS),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_TEXT_KEYS = ("name", "tool_call_id", *REASONING_KEYS)
_OTHER_ROLES = {
    "developer": "write 'system'",
    "human": "write 'user'",
    "gpt": "write 'assistant'",
    "model": "write 'assistant'",
    "bot": "write 'assistant'",
}
_NOT_TEXT = ("image", "audio", "video", "file")


def parse_message(value: Any, field: str) -> Message:
    """Checks a message and makes it uniform.

    Fields that are null are left out, a list of text parts becomes their text, the deprecated
    `function_call` and role `function` become `tool_calls` and `tool`, and the arguments of a call
    become the object that their JSON text stands for.

    Args:
      value: What stands in the record.
      field: Where it stands, for messages.

    Raises:
      BadPair: At the first thing that is wrong.
    """
    if not isinstance(value, dict):
        raise BadPair(
            "message-type", f'{field} is {kind(value)}; write {{"role": …, "content": …}}'
        )
    if value.get("role") == "function":
        value = {**value, "role": "tool"}
    role = _parse_role(value, field)
    # OpenAI's clients write the fields of a message that are not there as null or [].
    message = {key: item for key, item in value.items() if item is not None and item != []}
    if role == "assistant" and "function_call" in message:
        message = _without_function_call(message, field)
    known = _MESSAGE_KEYS[role]
    for key, item in message.items():
        if key not in known:
            raise BadPair("unknown-message-key", _unknown_key(key, known, role, field))
        if key in _TEXT_KEYS and not isinstance(item, str):
            raise BadPair("message-field-type", f"{field}.{key} is {kind(item)}; write a string")
    if "tool_calls" in message:
        message["tool_calls"] = _parse_tool_calls(message["tool_calls"], f"{field}.tool_calls")
    if isinstance(message.get("content"), list):
        message["content"] = _text_of_parts(message["content"], f"{field}.content")
    _check_content(value, message, field)
    _check_sampled(message, field)
    return message


def _without_function_call(message: Message, field: str) -> Message:
    if "tool_calls" in message:
        raise BadPair(
            "function-call-twice", f"{field} has function_call and tool_calls; keep tool_calls"
        )
    rest = {key: item for key, item in message.items() if key != "function_call"}
    call = {"type": "function", "function": message["function_call"]}
    return {**rest, "tool_calls": [call]}


def _unknown_key(key: str, known: tuple[str, ...], role: str, field: str) -> str:
    if any(key in keys for keys in _MESSAGE_KEYS.values()):
        return f"{field}.{key} is not a field of a message by {role!r}; remove it"
    return f"{field} has the unknown key {show(key)}{nearest(key, known)}"


def _parse_role(value: dict[str, Any], field: str) -> str:
    role = value.get("role")
    if role is None:
        raise BadPair("role-missing", f"{field}.role is missing; write one of {', '.join(ROLES)}")
    if role not in ROLES:
        hint = _OTHER_ROLES.get(role) if isinstance(role, str) else None
        raise BadPair(
            "unknown-role",
            f"{field}.role is {show(role)}; {hint or 'write one of ' + ', '.join(ROLES)}",
        )
    return role


def _text_of_parts(parts: list[Any], field: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        sort = part.get("type") if isinstance(part, dict) else None
        if isinstance(sort, str) and sort.startswith(_NOT_TEXT):
            raise BadPair(
                "content-not-text",
                f"{field}[{index}] is of type {show(sort)}; only text can be trained on: drop the "
                "line",
            )
        extra = set(part) - {"type", "text"} if isinstance(part, dict) else set()
        text = part.get("text") if isinstance(part, dict) else None
        if sort != "text" or not isinstance(text, str) or any(part[key] for key in extra):
            raise BadPair(
                "content-parts",
                f"{field} is a list of {len(parts)} parts, and part {index} is {show(part)}; write "
                'each as {"type": "text", "text": …}, or all as one string',
            )
        texts.append(text)
    return "".join(texts)


def _check_sampled(message: Message, field: str) -> None:
    given = message.get(SAMPLED)
    if given is None:
        return
    ids = given.get("ids") if isinstance(given, dict) else None
    good = isinstance(ids, list) and all(type(id) is int and 0 <= id < 2**31 for id in ids)
    if not good or not isinstance(given.get("vocabulary"), str):
        raise BadPair(
            "sampled-ids",
            f"{field}.{SAMPLED} is {show(given)}; it is what sampling wrote, "
            '{"ids": […], "vocabulary": …}: remove it, and the text is encoded',
        )


def _check_content(value: dict[str, Any], message: Message, field: str) -> None:
    content = message.get("content")
    if content is None and "tool_calls" in message:
        return
    if content is None:
        state = "missing" if "content" not in value else "null"
        state = "an empty list" if value.get("content") == [] else state
        raise BadPair("content-missing", f"{field}.content is {state}; write a string")
    if not isinstance(content, str):
        raise BadPair(
            "content-type",
            f"{field}.content is {kind(content)}, {show(content)}; write a string",
        )


def _parse_tool_calls(calls: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadPair("tool-calls-type", f"{field} is {kind(calls)}; write a list of calls")
    return [_parse_tool_call(call, f"{field}[{index}]") for index, call in enumerate(calls)]


def _parse_tool_call(call: Any, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise BadPair(
            "tool-call-type",
            f'{field} is no call; write {{"type": "function", "function": {{"name": …, …}}}}',
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise BadPair(
            "tool-call-name",
            f"{field}.function.name is {show(function.get('name'))}; write the function's name",
        )
    if not isinstance(call.get("id", ""), str):
        raise BadPair("tool-call-id-type", f"{field}.id is {kind(call['id'])}; write a string")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str | dict):
        raise BadPair(
            "tool-call-arguments",
            f"{field}.function.arguments is {kind(arguments)}; write an object, or its JSON",
        )
    return {**call, "function": {**function, "arguments": _object_or_text(arguments)}}


def _object_or_text(arguments: str | dict[str, Any]) -> str | dict[str, Any]:
    """OpenAI writes arguments as JSON text, chat templates expect the object itself.

    Text that is not an object stays as it is: a model may have been rejected for writing it.
    """
    if isinstance(arguments, dict):
        return arguments
    try:
        value = json.loads(arguments)
    except (json.JSONDecodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def parse_tools(tools: Any, functions: Any) -> tuple[dict[str, Any], ...]:
    """The function definitions of a record: `tools`, their JSON text, or the older `functions`.

    Raises:
      BadPair: If they are anything else.
    """
    if tools is not None and functions is not None:
        raise BadPair("tools-twice", "the record has tools and functions; keep tools")
    name = "tools"
    if isinstance(functions, list):
        name, tools = "functions", [{"type": "function", "function": each} for each in functions]
    elif functions is not None:
        raise BadPair("tools-type", f"functions is {kind(functions)}; write tools, a list")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (json.JSONDecodeError, RecursionError):
            raise BadPair(
                "tools-type", f"tools is the string {show(tools)}; write a list, or its JSON"
            ) from None
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise BadPair("tools-type", f"tools is {kind(tools)}; write a list of function definitions")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        named = function.get("name") if isinstance(function, dict) else None
        if not isinstance(named, str) or not named:
            raise BadPair(
                "tool-type",
                f"{name}[{index}] names no function; write "
                '{"type": "function", "function": {"name": …, "parameters": …}}',
            )
    return tuple(tools)

"""One message, tool call or tool definition of a record, checked and made uniform."""

import json
from collections import Counter
from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.pairs import SAMPLED, Message
from jaxdpo.data.reading.columns import is_prose, sort_of, texts_in, typo_of

ROLES = ("system", "user", "assistant", "tool")
# A model's thought before it answered, by the names that chat templates read it under.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# By what names a message says whether it is learnt: OpenAI's, LLaMA-Factory's, axolotl's.
_WEIGHT_KEYS = ("weight", "loss_weight", "train", "training")
_PLAIN = {"role", "content"}
_ROLE_SET = ("user", "assistant", "system")
_MESSAGE_KEYS = {
    "system": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "name", "tool_calls", SAMPLED, *REASONING_KEYS),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_TEXT_KEYS = ("name", "tool_call_id", *REASONING_KEYS)
# `developer` is what OpenAI calls the system role of its reasoning models.
_SAME_ROLE = {"function": "tool", "developer": "system"}
_OTHER_ROLES = {
    "human": "write 'user'",
    "gpt": "write 'assistant'",
    "model": "write 'assistant'",
    "bot": "write 'assistant'",
}
_NOT_TEXT = ("image", "audio", "video", "file", "input_image", "input_audio", "input_file")
# Sorts of text parts: OpenAI's two APIs', and LLaMA-Factory's, which has `value` for `text`.
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def parse_message(value: Any, field: str, unread: Counter[str] | None = None) -> Message:
    """Checks a message and makes it uniform.

    Fields that are null are left out, a list of text parts becomes their text, the deprecated
    `function_call` and role `function` become `tool_calls` and `tool`, a refusal becomes the
    content, and the arguments of a call become the object that their JSON text stands for. A
    message that is not to be learnt has `weight` 0.

    Args:
      value: The message as it stands in the record.
      field: Where it stands, for messages.
      unread: Counts the fields that nothing reads, by name.

    Raises:
      BadPair: At the first thing that is wrong.
    """
    if not isinstance(value, dict):
        raise BadPair(
            "message-type", f'{field} is {kind(value)}; write {{"role": …, "content": …}}'
        )
    # Nearly all messages are this simple, and reading is timed by them.
    if value.keys() == _PLAIN and type(value["content"]) is str and value["role"] in _ROLE_SET:
        return value
    # The record is the caller's; a changed message is a new one.
    if isinstance(value.get("role"), str) and value["role"] in _SAME_ROLE:
        value = {**value, "role": _SAME_ROLE[value["role"]]}
    role = _parse_role(value, field)
    # OpenAI's clients write the fields of a message that are not there as null or [].
    message = {key: item for key, item in value.items() if item is not None and item != []}
    if role == "assistant":
        message = _without_other_answers(message, field)
    known = _MESSAGE_KEYS[role]
    if not message.keys() <= set(known):
        message = _known_alone(message, role, field, unread)
    for key in _TEXT_KEYS:
        if key in message and not isinstance(message[key], str):
            raise BadPair(
                "message-field-type", f"{field}.{key} is {kind(message[key])}; write a string"
            )
    if "tool_calls" in message:
        message["tool_calls"] = _parse_tool_calls(message["tool_calls"], f"{field}.tool_calls")
    if SAMPLED in message:
        _check_sampled(message[SAMPLED], f"{field}.{SAMPLED}")
    if isinstance(message.get("content"), list):
        _take_parts(message, f"{field}.content")
    _check_content(value, message, field)
    return message


def _check_sampled(value: Any, field: str) -> None:
    """Refuses ids beside an answer's text that no sampler wrote."""
    ids = value.get("ids") if isinstance(value, dict) else None
    if (
        not isinstance(ids, list)
        or not all(type(each) is int and 0 <= each < 2**31 for each in ids)
        or not isinstance(value.get("vocabulary"), str)
    ):
        raise BadPair(
            "sampled-ids",
            f'{field} is {show(value)}; write {{"ids": […], "vocabulary": …}}, or remove it',
        )


def _without_other_answers(message: Message, field: str) -> Message:
    """Moves what OpenAI has beside content to where it is read: an old call, a refusal."""
    if "function_call" in message:
        message = _without_function_call(message, field)
    refusal = message.get("refusal")
    if isinstance(refusal, str):
        # The model writes its refusal as it writes any answer; only the API parts the two.
        if message.get("content") not in (None, "", refusal):
            raise BadPair("refusal-twice", f"{field} has a refusal and content; keep one")
        message = {key: item for key, item in message.items() if key != "refusal"}
        message["content"] = refusal
    return message


def _known_alone(message: Message, role: str, field: str, unread: Counter[str] | None) -> Message:
    """Leaves out the fields that nothing reads; refuses those that might say something."""
    kept = {}
    known = _MESSAGE_KEYS[role]
    for key, item in message.items():
        if key in known:
            kept[key] = item
        elif key in _WEIGHT_KEYS:
            if _parse_weight(item, key, field) == 0 and role == "assistant":
                kept["weight"] = 0
        elif any(key in keys for keys in _MESSAGE_KEYS.values()):
            # A template would write calls by a user, or ignore them; neither is what was meant.
            raise BadPair(
                "unknown-message-key",
                f"{field}.{key} is not a field of a message by {role!r}; remove it",
            )
        elif _may_say_something(key, item, role):
            raise BadPair(
                "unknown-message-key",
                f"{field} has the unknown key {show(key)}{typo_of(key, known)}; put what it says "
                "into content, or remove it",
            )
        elif unread is not None:
            unread[key] += 1
    return kept


def _may_say_something(key: str, value: Any, role: str) -> bool:
    sort = sort_of(key)
    if typo_of(key, _MESSAGE_KEYS[role]) or sort in ("asked", "not text"):
        return bool(texts_in(value)) or sort == "not text"
    # An assistant's other fields are its service's; a user's may be a part of the question.
    return sort == "unknown" and role != "assistant" and any(map(is_prose, texts_in(value)))


def _parse_weight(value: Any, key: str, field: str) -> int:
    # True and False are 1 and 0. Other weights would need a weight for each token.
    if value not in (0, 1):
        raise BadPair(
            "message-weight",
            f"{field}.{key} is {show(value)}; write 0 or 1; data.weight_key weighs whole pairs",
        )
    return int(value)


def _without_function_call(message: Message, field: str) -> Message:
    if "tool_calls" in message:
        raise BadPair(
            "function-call-twice", f"{field} has function_call and tool_calls; keep tool_calls"
        )
    rest = {key: item for key, item in message.items() if key != "function_call"}
    call = {"type": "function", "function": message["function_call"]}
    return {**rest, "tool_calls": [call]}


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


def _take_parts(message: Message, field: str) -> None:
    """Replaces a list of parts by their text; calls and thoughts go where messages have them."""
    # Parts are joined without a space: each has its own, as the API that wrote them says.
    texts, thoughts, calls = [], [], []
    parts = message["content"]
    for index, part in enumerate(parts):
        sort = part.get("type") if isinstance(part, dict) else None
        if isinstance(sort, str) and sort.startswith(_NOT_TEXT):
            raise BadPair(
                "content-not-text",
                f"{field}[{index}] is of type {show(sort)}; only text can be trained on: drop the "
                "line",
            )
        text = _text_of_part(part, sort)
        if isinstance(text, str) and sort in _TEXT_PARTS:
            texts.append(text)
        elif isinstance(text, str) and sort in ("reasoning", "thinking"):
            thoughts.append(text)
        elif sort == "tool_call" and text is not None:
            call = _object_or_text(text) if isinstance(text, str) else text
            calls.append({"type": "function", "function": call})
        else:
            raise BadPair(
                "content-parts",
                f"{field} is a list of {len(parts)} parts, and part {index} is {show(part)}; write "
                'each as {"type": "text", "text": …}, or all as one string',
            )
    message["content"] = "".join(texts)
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = _parse_tool_calls(calls, field)


def _text_of_part(part: Any, sort: Any) -> Any:
    """Returns what a part says, if it says one thing alone."""
    if not isinstance(part, dict) or not isinstance(sort, str):
        return None
    # A part of type "text" has its text under that name: it counts once.
    names = dict.fromkeys(("text", "value", "refusal", sort))
    said = [part[key] for key in names if part.get(key) is not None]
    # Caches of prompts and annotations are a service's; any other text would be lost.
    rest = {k: v for k, v in part.items() if k not in ("type", "text", "value", "refusal", sort)}
    lost = any(rest[key] for key in rest if key not in ("cache_control", "annotations", "index"))
    return said[0] if len(said) == 1 and not lost else None


def _check_content(value: dict[str, Any], message: Message, field: str) -> None:
    # An assistant that calls a tool need say nothing.
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
    # Mistral's templates write the id, so a number would fail there.
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
    """Decodes arguments: OpenAI writes them as JSON text, chat templates expect the object itself.

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
    """Returns the function definitions of a record: `tools`, their JSON text, or `functions`.

    A definition may stand by itself, as `{"name": …, "parameters": …}`, or within `function`.

    Raises:
      BadPair: If they are anything else.
    """
    if tools is not None and functions is not None:
        raise BadPair("tools-twice", "the record has tools and functions; keep tools")
    # OpenAI's older `functions` are the same definitions without a type.
    name = "tools"
    if isinstance(functions, list):
        name, tools = "functions", [{"type": "function", "function": each} for each in functions]
    elif functions is not None:
        raise BadPair("tools-type", f"functions is {kind(functions)}; write tools, a list")
    # Tables and LLaMA-Factory keep the definitions as JSON text.
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
    # ShareGPT's data sets list the functions themselves.
    tools = [
        {"type": "function", "function": tool} if _is_bare_function(tool) else tool
        for tool in tools
    ]
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


def _is_bare_function(tool: Any) -> bool:
    return isinstance(tool, dict) and "name" in tool and not {"type", "function"} & tool.keys()

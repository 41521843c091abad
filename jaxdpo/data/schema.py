"""The preference format: one parsed line → `PreferencePair`, or the reason why not.

    {"messages": [{"role": "user", "content": "Capital of Tasmania?"},
                  {"role": "assistant", "content": "Hobart"}],
     "rejected_message": {"role": "assistant", "content": "Paris"}}

The last message is the chosen answer; `rejected_message` answers the same prompt.
"""

import json
from typing import Any, get_args

from jaxdpo.data.config import Turns
from jaxdpo.data.pairs import Message, PreferencePair, Split
from jaxdpo.data.records import BadPair, kind, show
from jaxdpo.data.splits import hashed_split
from jaxdpo.errors import nearest

KNOWN_KEYS = ("messages", "rejected_message", "split", "tools", "metadata")
# Fields of an OpenAI chat request that say how an answer was sampled, not what was asked.
# https://platform.openai.com/docs/api-reference/chat/create
IGNORED_KEYS = frozenset(
    [
        "tool_choice",
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("max_completion_tokens", "max_tokens", "n", "seed", "stop", "temperature", "top_p"),
        *("model", "parallel_tool_calls", "reasoning_effort", "response_format"),
        *("service_tier", "store", "stream", "stream_options", "user"),
    ]
)
ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = {
    "system": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "name", "tool_calls"),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_OTHER_ROLES = {
    "developer": "write 'system'",
    "function": "write 'tool', after an assistant message with tool_calls",
    "human": "write 'user'",
    "gpt": "write 'assistant'",
    "model": "write 'assistant'",
    "bot": "write 'assistant'",
}


def parse_pair(line: dict[str, Any], source: str, test_fraction: float) -> PreferencePair:
    """Checks one parsed line and makes it a pair.

    Args:
      line: The JSON object.
      source: Where it stands, as `file:line`.
      test_fraction: Share of prompts that go to TEST where the line names no split.

    Raises:
      BadPair: At the first thing that is wrong.
    """
    _check_keys(line)
    messages = _parse_messages(line["messages"])
    rejected = _parse_rejected(line["rejected_message"])
    prompt, chosen = messages[:-1], messages[-1]
    _check_completion(chosen, f"messages[{len(prompt)}]")
    _check_completion(rejected, "rejected_message")
    if chosen == rejected:
        raise BadPair(
            "identical-completions",
            f"rejected_message equals the chosen message, {show(chosen.get('content'))}; "
            "a pair needs a preference: edit one or drop the line",
        )
    tools = _parse_tools(line.get("tools"))
    return PreferencePair(
        prompt=tuple(prompt),
        chosen=(chosen,),
        rejected=(rejected,),
        split=_parse_split(line) or hashed_split(prompt, tools, test_fraction),
        tools=tools,
        metadata=_parse_metadata(line.get("metadata")),
        source=source,
    )


def parse_supervised(
    line: dict[str, Any], source: str, test_fraction: float, turns: Turns
) -> list[PreferencePair]:
    """Checks one parsed line and makes it examples: pairs without a rejected completion.

    A preference line is taken for its chosen answer.

    Args:
      line: The JSON object; `rejected_message` may be missing.
      source: Where it stands, as `file:line`.
      test_fraction: As in `parse_pair`.
      turns: "last" for the last message, "all" for an example of every assistant's message, each
        with what was said before it as its prompt.

    Raises:
      BadPair: At the first thing that is wrong.
    """
    _check_keys(line, ("messages",))
    messages = _parse_messages(line["messages"])
    last = len(messages) - 1
    answers = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and any(m["role"] == "user" for m in messages[:index])
    ]
    tools = _parse_tools(line.get("tools"))
    split = _parse_split(line) or hashed_split(messages[:-1], tools, test_fraction)
    metadata = _parse_metadata(line.get("metadata"))
    examples = []
    for index in answers if turns == "all" else [last]:
        _check_completion(messages[index], f"messages[{index}]")
        prompt, answer = tuple(messages[:index]), (messages[index],)
        examples.append(PreferencePair(prompt, answer, (), split, tools, metadata, source))
    return examples


def _check_keys(
    line: dict[str, Any], needed: tuple[str, ...] = ("messages", "rejected_message")
) -> None:
    for key in line:
        if key not in KNOWN_KEYS and key not in IGNORED_KEYS:
            hint = (
                nearest(key, (*KNOWN_KEYS, *IGNORED_KEYS))
                or "; the user's own fields go under 'metadata'"
            )
            raise BadPair("unknown-key", f"unknown key {show(key)}{hint}")
    for key in needed:
        if line.get(key) is None:
            state = "null" if key in line else "missing"
            raise BadPair("missing-key", f"{key} is {state}; every line needs it")


def _parse_messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list):
        raise BadPair("messages-type", f"messages is {kind(messages)}; write a list of messages")
    if len(messages) < 2:
        raise BadPair(
            "messages-short",
            f"messages holds {len(messages)} of at least 2: the prompt, and the chosen answer last",
        )
    parsed = [_parse_message(item, f"messages[{i}]") for i, item in enumerate(messages)]
    _check_order(parsed)
    return parsed


def _check_order(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        raise BadPair(
            "last-not-assistant",
            f"messages[{len(roles) - 1}].role is {show(roles[-1])}; the last message is the chosen "
            "answer, by the assistant",
        )
    if "user" not in roles:
        raise BadPair("no-user", "messages holds no user message; a prompt needs one")
    if "system" in roles[1:]:
        index = roles.index("system", 1)
        raise BadPair(
            "system-not-first",
            f"messages[{index}].role is 'system'; a system message stands first, and once",
        )
    open_calls: list[str | None] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            _close_call(message, open_calls, f"messages[{index}]")
            continue
        if open_calls:
            raise BadPair(
                "tool-call-unanswered",
                f"messages[{index}] follows a tool call that no tool message answers "
                f"(id {show(open_calls[0])}); add the tool's answer",
            )
        open_calls = [call.get("id") for call in message.get("tool_calls", ())]


def _close_call(message: Message, open_calls: list[str | None], field: str) -> None:
    """Takes the call that a tool message answers, by id where both name one, else by order."""
    if not open_calls:
        raise BadPair(
            "tool-without-call",
            f"{field}.role is 'tool' but no tool call is open; it must follow an assistant message "
            "with tool_calls",
        )
    answered = message.get("tool_call_id")
    if answered is None or None in open_calls:
        open_calls.pop(0)
    elif answered in open_calls:
        open_calls.remove(answered)
    else:
        raise BadPair(
            "tool-call-id",
            f"{field}.tool_call_id is {show(answered)}; it must be one of the open calls "
            f"{show(open_calls)}",
        )


def _parse_rejected(value: Any) -> Message:
    rejected = _parse_message(value, "rejected_message")
    if rejected["role"] != "assistant":
        raise BadPair(
            "rejected-role",
            f"rejected_message.role is {show(rejected['role'])}; it must be 'assistant'",
        )
    return rejected


def _parse_message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise BadPair(
            "message-type", f'{field} is {kind(value)}; write {{"role": …, "content": …}}'
        )
    role = _parse_role(value, field)
    known = _MESSAGE_KEYS[role]
    # OpenAI's clients write the fields of a message that are not there as null or [].
    message = {key: item for key, item in value.items() if item is not None and item != []}
    for key in message:
        if key not in known:
            raise BadPair("unknown-message-key", _unknown_key(key, known, role, field))
    for key in ("name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str):
            raise BadPair(
                "message-field-type", f"{field}.{key} is {kind(message[key])}; write a string"
            )
    if "tool_calls" in message:
        message["tool_calls"] = _parse_tool_calls(message["tool_calls"], f"{field}.tool_calls")
    _check_content(value, message, field)
    return message


def _unknown_key(key: str, known: tuple[str, ...], role: str, field: str) -> str:
    if key == "function_call":
        return f"{field}.function_call is deprecated; write tool_calls"
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


def _check_content(value: dict[str, Any], message: Message, field: str) -> None:
    content = value.get("content")
    if content is None and "tool_calls" in message:
        return
    if content is None:
        state = "null" if "content" in value else "missing"
        raise BadPair("content-missing", f"{field}.content is {state}; write a string")
    if isinstance(content, list):
        raise BadPair(
            "content-parts",
            f"{field}.content is a list of {len(content)} parts; write its text as one string",
        )
    if not isinstance(content, str):
        raise BadPair(
            "content-type",
            f"{field}.content is {kind(content)}, {show(content)}; write a string",
        )


def _check_completion(message: Message, field: str) -> None:
    content = message.get("content", "")
    if not content.strip() and "tool_calls" not in message:
        state = f"only white space, {show(content)}" if content else "empty"
        raise BadPair(
            "empty-completion", f"{field}.content is {state}; write an answer or drop the line"
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


def _parse_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise BadPair("tools-type", f"tools is {kind(tools)}; write a list of function definitions")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise BadPair(
                "tool-type",
                f"tools[{index}] names no function; write "
                '{"type": "function", "function": {"name": …, "parameters": …}}',
            )
    return tuple(tools)


def _parse_split(line: dict[str, Any]) -> Split | None:
    split = line.get("split")
    if split is not None and split not in get_args(Split):
        hint = nearest(split.upper(), get_args(Split)) if isinstance(split, str) else ""
        raise BadPair(
            "bad-split",
            f"split is {show(split)}; write 'TRAIN' or 'TEST', or leave it out{hint}",
        )
    return split


def _parse_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is not None and not isinstance(metadata, dict):
        raise BadPair("metadata-type", f"metadata is {kind(metadata)}; write an object")
    return metadata or {}

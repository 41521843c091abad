"""Tool calls in the form that a chat template wants.

Templates differ in two ways that no field of theirs tells: some write the arguments of a call with
`tojson` and want an object, others add them to a string and want their JSON text; and some look
whether the content beside a call is null. So the forms are tried in turn, and the first is taken
that the template renders with every function's name, and no argument as Python would print it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxdpo.data.pairs import Message

Form = Callable[[Message], Message]


def forms(messages: Sequence[Message]) -> Sequence[Form]:
    """Returns the forms to try for a conversation, that of the data first."""
    return _FORMS if any("tool_calls" in message for message in messages) else _FORMS[:1]


def function_names(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the names of the functions that a conversation defines or calls."""
    yield from (tool["function"]["name"] for tool in tools if "function" in tool)
    yield from (call["function"]["name"] for call in _calls(messages))


def is_named(name: str, rendered: str) -> bool:
    """Tells whether a rendering holds a function's name, plain or as JSON writes it."""
    return name in rendered or json.dumps(name, ensure_ascii=False)[1:-1] in rendered


def printed_by_python(messages: Sequence[Message], rendered: str) -> bool:
    """Tells whether a rendering holds arguments as `{'city': 'Rome'}`, which no model writes."""
    arguments = (call["function"].get("arguments") for call in _calls(messages))
    return any(isinstance(given, dict) and given and str(given) in rendered for given in arguments)


def _calls(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    return (call for message in messages for call in message.get("tool_calls") or ())


def _as_given(message: Message) -> Message:
    return message


def _with_content(content: str | None) -> Form:
    def form(message: Message) -> Message:
        if "tool_calls" not in message or message.get("content"):
            return message
        return {**message, "content": content}

    return form


def _as_text(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        # Templates that write the arguments as text often write the type, too.
        {"type": "function", **call, "function": {**function, "arguments": _text_of(function)}}
        for call in message["tool_calls"]
        for function in [call["function"]]
    ]
    return {**message, "tool_calls": calls}


def _text_of(function: dict[str, Any]) -> str:
    arguments = function.get("arguments", {})
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _both(first: Form, second: Form) -> Form:
    return lambda message: second(first(message))


# Cheapest and likeliest first: a template that takes the data as it is renders it once.
_NULL, _EMPTY = _with_content(None), _with_content("")
_FORMS: tuple[Form, ...] = (
    _as_given,
    _NULL,
    _EMPTY,
    _as_text,
    _both(_as_text, _NULL),
    _both(_as_text, _EMPTY),
)

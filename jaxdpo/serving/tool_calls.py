"""Calls of tools, read from the text that a model writes them in.

Models write calls as their chat templates show them: as JSON between `<tool_call>` tags (Qwen,
Hermes), or as an answer that is JSON and nothing else (Llama 3, and Mistral, whose mark is a
special token that the text does not have).
"""

import json
import re
import uuid
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


class ReadAnswer(NamedTuple):
    """An answer with its calls apart.

    Attributes:
      content: The text beside the calls; None if there is none.
      calls: The calls as OpenAI writes them.
    """

    content: str | None
    calls: list[dict[str, Any]]


def read_calls(text: str, tools: Sequence[dict[str, Any]]) -> ReadAnswer:
    """Reads the calls in an answer; one that cannot be read, or that no tool has, stays text.

        read_calls('<tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call>', tools)

    Args:
      text: The answer.
      tools: The tools that were offered.
    """
    # Text that happens to be JSON is a call only if it names a tool that was offered.
    names = {tool.get("function", {}).get("name") for tool in tools}
    calls: list[dict[str, Any]] = []

    def taken(found: re.Match[str]) -> str:
        read = _calls_in(found[1], names)
        calls.extend(read)
        return "" if read else found[0]

    rest = _TAGGED.sub(taken, text)
    if not calls:
        calls = _calls_in(text, names)
        rest = "" if calls else text
    return ReadAnswer(rest.strip() or None if calls else text, calls)


def _calls_in(text: str, names: Collection[str | None]) -> list[dict[str, Any]]:
    """Returns the calls that JSON text stands for: one, or a list; none if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    listed = value if isinstance(value, list) else [value]
    calls = []
    for each in listed:
        if not isinstance(each, dict) or each.get("name") not in names:
            return []
        # Llama calls them parameters. OpenAI's clients want JSON text, whatever the model wrote.
        arguments = each.get("arguments", each.get("parameters", {}))
        written = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        function = {"name": each["name"], "arguments": written}
        calls.append({"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function})
    return calls

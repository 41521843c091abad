"""Tokens that end an answer: all that a model, its template and its tokenizer know.

A base model with a chat template often has one end in its configuration (`<|endoftext|>`) and
another in the template (`<|im_end|>`); others end a call of a tool in a token of its own. Sampling
stops at every one of them, an export lists them all, and a completion that is trained ends in
exactly one.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from jaxdpo.data.pairs import Message

# Ends of a turn that calls a tool, in models whose configuration may not say so: Llama 3.1, gpt-oss
# and Gemma 4.
NAMED_ENDS = ("<|eom_id|>", "<|call|>", "<|tool_response>")
# Text that no template writes itself, to be found again in a rendering.
PROBE = "Probe 7Qx1, in two\nlines."
_NEXT, _FUNCTION = "Next 5tz8?", "probe_4kw"
_ASKED = {"role": "user", "content": "Hello"}
_CONFIGS = ("generation_config.json", "config.json")

Render = Callable[[list[Message]], str | None]
FindTokens = Callable[[str], list[str]]


def configured_ends(folder: Path) -> tuple[int, ...]:
    """Reads the `eos_token_id` of a model folder's configurations: numbers, or lists of them."""
    found: list[Any] = []
    for name in _CONFIGS:
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Whoever loads the model complains of a damaged file.
            continue
        for part in (config, config.get("text_config")) if isinstance(config, dict) else ():
            given = part.get("eos_token_id") if isinstance(part, dict) else None
            found += given if isinstance(given, list) else [given]
    return tuple(dict.fromkeys(each for each in found if type(each) is int))


def end_of_text(render: Render, tokens_in: FindTokens, known: Collection[str]) -> str | None:
    """Finds the token that a template, or else the model, ends an answer of text with.

    Args:
      render: Renders messages; None where the template refuses them.
      tokens_in: Lists the control tokens in a rendering.
      known: Tokens that end answers by what tokenizer and configuration say.

    Returns:
      The token, or None if the template writes none that could be it.
    """
    answered = [_ASKED, {"role": "assistant", "content": PROBE}]
    last = tokens_in(_after(render(answered), PROBE))
    followed = _after(render([*answered, {"role": "user", "content": _NEXT}]), PROBE)
    within = tokens_in(followed.partition(_NEXT)[0])
    # A template may close the whole conversation as well as the answer, as Phi-3's does with the
    # end of text: what closes an answer stands after one in the middle, too.
    both = [a for a, b in zip(last, within, strict=False) if a == b]
    written = both or last[:1]
    # Command R closes the text and then the turn: the one that the model stops at is the end.
    ends = [token for token in written if token in known] or written
    # GLM closes nothing: the model writes the token that opens the next turn, and stops there.
    # It is the end only where the configuration names it: else it begins a message, no more.
    return next(iter(ends), None) or next((t for t in within[:1] if t in known), None)


def end_of_call(render: Render, tokens_in: FindTokens, known: Collection[str]) -> str | None:
    """Finds the token that a model ends a call of a tool with where the template writes none.

    Args:
      render: Renders messages; None where the template refuses them.
      tokens_in: Lists the control tokens in a rendering.
      known: Tokens that end answers.

    Returns:
      The token, or None if there is none besides that of text.
    """
    function = {"name": _FUNCTION, "arguments": {"city": "Rome"}}
    call = {"type": "function", "id": "abcdefghi", "function": function}
    called = {"role": "assistant", "tool_calls": [call]}
    answer = {"role": "tool", "name": _FUNCTION, "content": _NEXT, "tool_call_id": "abcdefghi"}
    rendered = _after(render([_ASKED, called, answer]), _FUNCTION).partition(_NEXT)[0]
    return next((token for token in tokens_in(rendered) if token in known), None)


def _after(rendered: str | None, text: str) -> str:
    return (rendered or "").rpartition(text)[2] if text in (rendered or "") else ""

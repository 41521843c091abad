"""Texts of a pair, for looking at them without a tokenizer."""

import json
import re
from collections.abc import Sequence

from jaxdpo.data.pairs import Message, PreferencePair

# Japanese and Chinese write no spaces: each of their characters counts as a word.
_WORD = re.compile(r"[^\W_぀-ヿ㐀-鿿]+|[぀-ヿ㐀-鿿]")
# The same for ASCII text, three times as fast: inspection spends most of its time here.
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def said(messages: Sequence[Message]) -> str:
    """Returns the contents of messages, and their tool calls as JSON, in lines."""
    parts = []
    for message in messages:
        parts.append(message.get("content") or "")
        parts += [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
    return "\n".join(part for part in parts if part)


def answers(pair: PreferencePair) -> tuple[str, str]:
    """Returns the chosen and the rejected text; for pairs that came as ids, the ids.

    An answer that was labelled by itself stands in the first place if it is good, in the second if
    not; the other is empty. A supervised example has a first answer alone.
    """
    if pair.token_ids is not None:
        _, chosen, rejected = pair.token_ids
        return " ".join(map(str, chosen)), " ".join(map(str, rejected))
    if pair.label is False:
        return "", said(pair.chosen)
    return said(pair.chosen), said(pair.rejected)


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case; for scripts without spaces, its characters."""
    lower = text.lower()
    return (_ASCII_WORD if lower.isascii() else _WORD).findall(lower)

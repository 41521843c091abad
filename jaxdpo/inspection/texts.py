"""The texts of a pair, for looking at them without a tokenizer."""

import json
import re
from collections.abc import Sequence

from jaxdpo.data.pairs import Message, PreferencePair


def said(messages: Sequence[Message]) -> str:
    """What is said in messages: contents, and calls as JSON."""
    parts = []
    for message in messages:
        parts.append(message.get("content") or "")
        parts += [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
    return "\n".join(part for part in parts if part)


def answers(pair: PreferencePair) -> tuple[str, str]:
    """Chosen and rejected text; of pairs that came as ids, the ids.

    An answer that was judged by itself stands in the first place if it was found good, in the
    second if not; the other is empty.
    """
    if pair.token_ids is not None:
        return tuple(" ".join(map(str, ids)) for ids in pair.token_ids[1:])  # pyright: ignore
    if pair.label is False:
        return "", said(pair.chosen)
    return said(pair.chosen), said(pair.rejected)


def words(text: str) -> list[str]:
    """Its words in lower case; of scripts without spaces, its characters."""
    return re.findall(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+", text.lower())

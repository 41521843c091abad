"""Limits of length: counting words and sentences, and finding the limits that prompts name."""

import re
from collections.abc import Sequence
from typing import Literal

from jaxdpo.data.pairs import Message

Unit = Literal["word", "sentence", "token"]

_NUMBERS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_NUMBER = rf"(?P<n>\d[\d,]*|{'|'.join(_NUMBERS)})"
_BELOW = r"(?:(?P<below>fewer than|less than|under|below)|{})"
_BEFORE = _BELOW.format(
    r"at most|no more than|not more than|no longer than|not exceed|not exceeding|exceed|up to|"
    r"within|maximum of|max\.?|limit of|limited to|limit to|limit it to|limit your \w+ to"
)
_AFTER = r"or (?:fewer|less)|at (?:the )?most|maximum|max\b|limit"


def count(text: str, unit: Unit) -> int:
    """Counts words (between white space) or sentences (ended by . ! ? or the text).

    >>> count("It opens at 9. Come early", "sentence")
    2
    """
    if unit == "word":
        return len(text.split())
    assert unit == "sentence", "tokens are a tokenizer's to count"
    # A full stop ends a sentence only before white space (there is none in 9.30); in Chinese and
    # Japanese none follows.
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+|[。！？]+", text)
    return sum(bool(part.strip()) for part in parts)


def limit_in(messages: Sequence[Message], unit: Unit) -> int | None:
    """Finds the limit that the last user message names, or else the system message.

    >>> limit_in([{"role": "user", "content": "Why? Answer in fewer than 20 words."}], "word")
    19
    """
    users = [message for message in messages if message["role"] == "user"][-1:]
    for message in [*users, *(m for m in messages if m["role"] == "system")]:
        found = limits_of(message["content"], unit)
        # Two different limits: which one counts is nobody's to guess.
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def limits_of(text: str, unit: Unit) -> set[int]:
    """Finds every limit of a unit in a text."""
    # Both orders: "at most 5 words" and "5 words or fewer".
    patterns = (
        rf"\b{_BEFORE}\s+{_NUMBER}[\s-]+{unit}s?\b",
        rf"\b{_NUMBER}[\s-]+{unit}s?,?\s+(?:{_AFTER})",
    )
    limits = set()
    for pattern in patterns:
        for found in re.finditer(pattern, text, re.IGNORECASE):
            said = found["n"].lower().replace(",", "")
            number = _NUMBERS.index(said) + 1 if said in _NUMBERS else int(said)
            # "Fewer than 20" is at most 19.
            limits.add(number - bool(found.groupdict().get("below")))
    return limits

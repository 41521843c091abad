"""The meaning of columns: by their names, by what they hold, and by what `data.columns` says.

A column's name is compared in one spelling (`systemPrompt`, `System prompt` and `system_prompt` are
the same). It names a role (`question` is a prompt), a fact about the record (`annotator_id`), or
nothing known. Text under a name that is not known to be a mere fact might be a part of what the
model was asked, so it is never left out without a word: `unread.py` refuses it by name.
"""

import difflib
import functools
import re
from collections.abc import Iterable
from typing import Any

from jaxdpo.data.config import Role
from jaxdpo.data.reading.names import (
    ASKED_WORDS,
    FACT_NAMES,
    FACT_WORDS,
    JUDGE_WORDS,
    NAMES_OF,
    NOT_TEXT_WORDS,
)

_FACTS = frozenset(FACT_WORDS.split())
_ASKED = frozenset(ASKED_WORDS.split())
_NOT_TEXT = frozenset(NOT_TEXT_WORDS.split())
# A `judge_prompt` was asked of the judge, not of the model.
_OF_JUDGES = frozenset(JUDGE_WORDS.split())
# `systemPrompt` and `promptID` are two words, `CoT` is one.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][A-Za-z])")
_NO_WORD = re.compile(r"[^a-z0-9]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE_END = (".", "?", "!", ":", "。", "?", "!", "…")


@functools.lru_cache(maxsize=4096)
def spelled(name: str) -> str:
    """Returns a column's name in the one spelling that names are compared in.

    >>> spelled("systemPrompt"), spelled("chosen-rating")
    ('system_prompt', 'chosen_rating')
    """
    return _NO_WORD.sub("_", _CAMEL.sub("_", name).lower()).strip("_")


@functools.lru_cache(maxsize=4096)
def sort_of(name: str) -> str:
    """Says what a column is by its name: `"fact"`, `"asked"`, `"not text"` or `"unknown"`.

    >>> sort_of("prompt_id"), sort_of("custom_system_prompt"), sort_of("xq")
    ('fact', 'asked', 'unknown')
    """
    # A column that `data.columns` took the name of is still judged by that name.
    name = spelled(name.removesuffix(OTHER))
    if name in FACT_NAMES or name.split("_")[0] in _OF_JUDGES:
        return "fact"
    # `score_A` and `answer_0` are a score and an answer.
    words = [word for word in name.split("_") if len(word) > 1 and not word.isdigit()]
    last = words[-1].rstrip("0123456789") if words else name
    if name in _NOT_TEXT or last in _NOT_TEXT:
        return "not text"
    if last in _FACTS or name.startswith(("is_", "has_", "num_", "n_")):
        return "fact"
    return "asked" if last in _ASKED else "unknown"


# Ends the name of a column whose own name `data.columns` gives to another one.
OTHER = " (the column itself)"


@functools.lru_cache(maxsize=1024)
def keys_by_role(keys: tuple[str, ...]) -> dict[Role, tuple[str, ...]]:
    """Finds the columns of each role among a record's, the likeliest name of each first.

    Args:
      keys: Names of the columns that are not null, in the record's order.
    """
    at = {spelled(key): key for key in reversed(keys)}
    found: dict[Role, tuple[str, ...]] = {}
    for role, names in NAMES_OF.items():
        if present := tuple(at[name] for name in names if name in at):
            found[role] = present
    return found


def is_prose(text: str) -> bool:
    """Tells text that a person may have asked from a mark such as `"gpt-4"`, `"en"` or a date.

    >>> is_prose("You are terse."), is_prose("math/algebra-2")
    (True, False)
    """
    text = text.strip()
    if text.endswith(_SENTENCE_END) and _WORD.search(text):
        return True
    if not text.isascii():
        # Chinese, Japanese and Thai part no words.
        return (len(text) > 3 and any(ord(letter) > 0x2E7F for letter in text)) or " " in text
    return len(_WORD.findall(text)) > 1 and any(letter.isspace() for letter in text)


def texts_in(value: Any) -> list[str]:
    """Lists every string in a value that holds a letter, at any depth."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if item[:1].isalpha() or any(map(str.isalpha, item)):
                found.append(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return found


def typo_of(name: str, known: Iterable[str]) -> str:
    """Says which name was probably misspelt, or nothing if the name resembles none closely.

    >>> typo_of("rejected_mesage", ["messages", "rejected_message"])
    "; did you mean 'rejected_message'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    return f"; did you mean {close[0]!r}?" if close else ""

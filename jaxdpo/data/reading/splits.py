"""The split of a pair: by its line, by its file's name, or by its prompt alone."""

import array
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdpo.data.pairs import SAMPLED, Message, PreferencePair, Split
from jaxdpo.storage.files import json_digest


def prompt_digest(prompt: Sequence[Message], tools: Sequence[dict[str, Any]]) -> bytes:
    """Returns the SHA-256 of what the model is asked: messages before the answer, and tools.

    The order of an object's keys makes no difference.
    """
    global _last
    before = _last
    if before[0] is prompt and before[1] is tools:
        return before[2]
    asked = list(prompt)
    if any(SAMPLED in message for message in asked):
        # The ids that an earlier answer was sampled as change nothing of what is asked.
        asked = [{k: v for k, v in message.items() if k != SAMPLED} for message in asked]
    digest = bytes.fromhex(json_digest([asked, list(tools)]))
    if isinstance(prompt, tuple) and isinstance(tools, tuple):
        _last = (prompt, tools, digest)
    return digest


# The last prompt and its digest: one pair's is asked for two or three times in a row, to draw its
# split, to look for leaks and to weigh its source, and it costs as much as parsing the line.
_last: tuple[Any, Any, bytes] = (None, None, b"")


def pair_digest(pair: PreferencePair) -> bytes:
    """Returns `prompt_digest` of a pair's prompt, or of its ids where it has no messages."""
    # A document has neither, and is known by its text.
    asked = pair.prompt or ids_as_prompt(pair.token_ids) or pair.chosen
    return prompt_digest(asked, pair.tools)


def ids_as_prompt(token_ids: Sequence[Sequence[int]] | None) -> list[Message]:
    """Returns what stands for the prompt of a pair that came as ids."""
    return [{"ids": list(token_ids[0])}] if token_ids else []


# Names of splits: of the Hub, of scikit-learn's users, of OpenAI's `valid1`.
_TRAIN = r"train|training|trn|sft_train"
_TEST = r"test|testing|valid|validation|val|dev|develop|eval|evaluation|held[_-]?out|holdout"
_NAMED = re.compile(rf"(?:({_TRAIN})|({_TEST}))(?:\d*|[_-](?:\w+))", re.IGNORECASE)
_FILE_BEGINS = re.compile(
    rf"(?:({_TRAIN})|({_TEST}))(?:_\w+)?(?:[-.]\d[\w-]*|\d*)(?:\.\w+)*", re.IGNORECASE
)
_FILE_ENDS = re.compile(rf".*[_\-.](?:({_TRAIN})|({_TEST}))(?:-\d[\w-]*)?(?:\.\w+)*", re.IGNORECASE)


def split_named(name: str) -> Split | None:
    """Reads the name of a split, such as `"train_prefs"`, `"TEST"` or `"validation"`.

    >>> split_named("train_prefs"), split_named("valid1"), split_named("other")
    ('TRAIN', 'TEST', None)
    """
    found = _NAMED.fullmatch(name.strip())
    return None if found is None else "TRAIN" if found[1] else "TEST"


def split_of_file(path: str) -> Split | None:
    """Reads the split that a file's name says, or else the name of a folder that it lies in.

    >>> split_of_file("data/train-00000-of-00002.parquet"), split_of_file("prefs_test.jsonl")
    ('TRAIN', 'TEST')

    Args:
      path: The file, below the folder that was asked for.
    """
    # The file's own name is nearer to it than its folder's.
    for part in reversed(Path(path).parts):
        found = _FILE_BEGINS.fullmatch(part) or _FILE_ENDS.fullmatch(part)
        if found is not None:
            return "TRAIN" if found[1] else "TEST"
    return None


def hashed_split(
    prompt: Sequence[Message], tools: Sequence[dict[str, Any]], test_fraction: float
) -> Split:
    """Draws the split of a prompt that no line assigns.

    Equal prompts never straddle, and adding, removing or reordering lines never moves one. Raising
    `test_fraction` moves prompts from TRAIN to TEST only.

    Args:
      prompt: The messages before the answer.
      tools: The function definitions.
      test_fraction: Share of prompts that go to TEST.
    """
    # The first 64 bits of a digest are a uniform number, the same on every machine.
    position = int.from_bytes(prompt_digest(prompt, tools)[:8], "big") / 2**64
    return "TEST" if position < test_fraction else "TRAIN"


class Prompts:
    """The prompts of pairs that go by, to tell which stand in both splits.

    Attributes:
      trained: The first 64 bits of the digest of each TRAIN pair's prompt.
      tested: Those of each TEST pair's.
      sources: `file:line` of each TEST pair.
    """

    def __init__(self) -> None:
        # Numbers and not prompts: ten million of them take 80 MB. With two million others, the odds
        # that any two prompts have the same number are one in a million.
        self.trained, self.tested = array.array("Q"), array.array("Q")
        self.sources: list[str] = []

    def add(self, pair: PreferencePair) -> None:
        """Takes note of a pair's prompt."""
        number = int.from_bytes(pair_digest(pair)[:8], "big")
        if pair.split == "TRAIN":
            self.trained.append(number)
        else:
            self.tested.append(number)
            self.sources.append(pair.source)

    def merge(self, other: "Prompts") -> None:
        """Takes over what was noted of pairs that follow."""
        self.trained.extend(other.trained)
        self.tested.extend(other.tested)
        self.sources.extend(other.sources)

    def leaked(self) -> list[str]:
        """Lists where TEST pairs stand whose prompt TRAIN has too (by the lines' own splits)."""
        found = np.isin(np.array(self.tested, np.uint64), np.array(self.trained, np.uint64))
        return [self.sources[index] for index in np.flatnonzero(found)]


def leaked_prompts(pairs: Iterable[PreferencePair]) -> list[str]:
    """Lists where TEST pairs stand whose prompt TRAIN has too."""
    prompts = Prompts()
    for pair in pairs:
        prompts.add(pair)
    return prompts.leaked()

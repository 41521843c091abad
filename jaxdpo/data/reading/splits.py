"""Which prompts train and which test, decided by the prompt alone."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxdpo.data.pairs import Message, PreferencePair, Split
from jaxdpo.storage.files import json_digest


def prompt_digest(prompt: Sequence[Message], tools: Sequence[dict[str, Any]]) -> bytes:
    """SHA-256 of what the model is asked: the messages before the answer, and the tools.

    The order of an object's keys makes no difference.
    """
    return bytes.fromhex(json_digest([list(prompt), list(tools)]))


def pair_digest(pair: PreferencePair) -> bytes:
    """`prompt_digest` of a pair's prompt; of its ids where it has no messages."""
    return prompt_digest(pair.prompt or ids_as_prompt(pair.token_ids), pair.tools)


def ids_as_prompt(token_ids: Sequence[Sequence[int]] | None) -> list[Message]:
    """What stands for the prompt of a pair that came as ids."""
    return [{"ids": list(token_ids[0])}] if token_ids else []


def hashed_split(
    prompt: Sequence[Message], tools: Sequence[dict[str, Any]], test_fraction: float
) -> Split:
    """The split of a prompt that no line assigns.

    Equal prompts never straddle, and adding, removing or reordering lines never moves one. Raising
    `test_fraction` moves prompts from TRAIN to TEST only.
    """
    position = int.from_bytes(prompt_digest(prompt, tools)[:8], "big") / 2**64
    return "TEST" if position < test_fraction else "TRAIN"


class Prompts:
    """The prompts of pairs that go by, to tell which stand in both splits."""

    def __init__(self) -> None:
        self._trained: set[bytes] = set()
        self._tested: list[tuple[bytes, str]] = []

    def add(self, pair: PreferencePair) -> None:
        """Takes note of a pair's prompt."""
        # Half of the digest tells millions apart.
        digest = pair_digest(pair)[:16]
        if pair.split == "TRAIN":
            self._trained.add(digest)
        else:
            self._tested.append((digest, pair.source))

    def leaked(self) -> list[str]:
        """Where TEST pairs stand whose prompt TRAIN has too (by the lines' own splits)."""
        return [source for digest, source in self._tested if digest in self._trained]


def leaked_prompts(pairs: Iterable[PreferencePair]) -> list[str]:
    """Where TEST pairs stand whose prompt TRAIN has too."""
    prompts = Prompts()
    for pair in pairs:
        prompts.add(pair)
    return prompts.leaked()

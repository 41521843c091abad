"""Which prompts train and which test, decided by the prompt alone."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from jaxdpo.data.pairs import Message, PreferencePair, Split


def prompt_digest(prompt: Sequence[Message], tools: Sequence[dict[str, Any]]) -> bytes:
    """SHA-256 of what the model is asked: the messages before the answer, and the tools.

    The order of an object's keys makes no difference.
    """
    canonical = json.dumps(
        [list(prompt), list(tools)], sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode("utf-8")).digest()


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


def leaked_prompts(pairs: Iterable[PreferencePair]) -> list[str]:
    """Where TEST pairs stand whose prompt TRAIN has too (by the lines' own splits)."""
    trained: set[bytes] = set()
    tested: list[tuple[bytes, str]] = []
    for pair in pairs:
        digest = pair_digest(pair)
        if pair.split == "TRAIN":
            trained.add(digest)
        else:
            tested.append((digest, pair.source))
    return [source for digest, source in tested if digest in trained]

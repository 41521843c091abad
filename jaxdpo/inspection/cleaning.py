"""Remedies for what was found; each change is reported."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import leaked_prompts, pair_digest
from jaxdpo.errors import UserError
from jaxdpo.inspection.findings import repeated
from jaxdpo.inspection.texts import answers

Remedy = Literal["dedupe", "conflicts", "leaks", "balance"]


def clean(
    pairs: Sequence[PreferencePair], remedies: Sequence[Remedy]
) -> tuple[list[PreferencePair], list[str]]:
    """Applies remedies in the order: conflicts, dedupe, leaks, balance.

    Returns:
      The pairs that are left, and a line for each change.

    Raises:
      UserError: For `balance` of answers that were judged one by one.
    """
    left, changes = list(pairs), []

    def drop(indices: Sequence[int], why: str) -> None:
        changes.extend(f"{left[i].source}: dropped, {why}" for i in indices)
        gone = set(indices)
        left[:] = [pair for i, pair in enumerate(left) if i not in gone]

    if "conflicts" in remedies:
        drop(repeated(left)[1], "another pair has its labels turned round")
    if "dedupe" in remedies:
        drop(repeated(left)[0], "it repeats an earlier pair")
    if "leaks" in remedies:
        leaked = set(leaked_prompts(left))
        for i, pair in enumerate(left):
            if pair.split == "TEST" and pair.source in leaked:
                left[i] = dataclasses.replace(pair, split="TRAIN")
                changes.append(f"{pair.source}: moved to TRAIN, where its prompt stands too")
    if "balance" in remedies and any(pair.label is not None for pair in left):
        raise UserError(
            "remedies: balance evens out the lengths of pairs, and these answers were judged one "
            "by one; leave it out"
        )
    if "balance" in remedies:
        drop(_surplus(left), "more chosen answers are longer than shorter, or the other way")
    return left, changes


def _surplus(pairs: Sequence[PreferencePair]) -> list[int]:
    """TRAIN pairs to drop so that as many chosen answers are longer as are shorter."""
    longer: list[int] = []
    shorter: list[int] = []
    for i, pair in enumerate(pairs):
        chosen, rejected = map(len, answers(pair))
        if pair.split == "TRAIN" and chosen != rejected:
            (longer if chosen > rejected else shorter).append(i)
    larger, smaller = sorted((longer, shorter), key=len, reverse=True)
    # Which ones go depends on the pair alone, not on where it stands.
    larger.sort(key=lambda i: (pair_digest(pairs[i]), answers(pairs[i])))
    return larger[len(smaller) :]

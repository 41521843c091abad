"""Remedies for what was found; each change is reported."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.errors import UserError
from jaxdpo.inspection.findings import leaks, repeated
from jaxdpo.inspection.survey import Survey, survey_pairs

Remedy = Literal["dedupe", "near-duplicates", "conflicts", "leaks", "balance"]


@dataclass(frozen=True, eq=False)
class Changes:
    """The effect of remedies on N pairs.

    Attributes:
      dropped_N: bool `[N]`, which pairs go.
      moved_N: bool `[N]`, which TEST pairs move to TRAIN.
      lines: A line for each change.
    """

    dropped_N: np.ndarray
    moved_N: np.ndarray
    lines: tuple[str, ...]

    def apply(self, pairs: Iterable[PreferencePair]) -> Iterator[PreferencePair]:
        """Yields the pairs that are left, of all that were surveyed, in the same order."""
        for pair, dropped, moved in zip(pairs, self.dropped_N, self.moved_N, strict=True):
            if not dropped:
                yield dataclasses.replace(pair, split="TRAIN") if moved else pair


def decide(survey: Survey, remedies: Sequence[Remedy]) -> Changes:
    """Decides what remedies change: conflicts, dedupe, near-duplicates, leaks, then balance.

    Each looks at what those before it have left.

    Raises:
      UserError: For `balance` of answers that stand alone.
    """
    count = len(survey)
    dropped, moved = np.zeros(count, bool), np.zeros(count, bool)
    lines: list[str] = []

    def drop(find: Callable[[np.ndarray], np.ndarray], why: str) -> None:
        indices = find(np.flatnonzero(~dropped))
        dropped[indices] = True
        lines.extend(f"{place}: dropped, {why}" for place in survey.places.take(indices))

    # Conflicts first: where two pairs contradict each other both go. Were near-duplicates dropped
    # before, one side of a conflict might stay.
    if "conflicts" in remedies:
        drop(lambda left: repeated(survey, left)[1], "another pair has its labels turned round")
    if "dedupe" in remedies:
        drop(lambda left: repeated(survey, left)[0], "it repeats an earlier pair")
    if "near-duplicates" in remedies:
        drop(lambda left: np.intersect1d(left, survey.near), "it nearly repeats an earlier pair")
    # Balance comes last, and counts the pairs that leaks has moved to TRAIN.
    train = survey.train_N.copy()
    if "leaks" in remedies:
        leaked = leaks(survey, np.flatnonzero(~dropped))
        moved[leaked] = train[leaked] = True
        lines += [
            f"{place}: moved to TRAIN, where its prompt stands too"
            for place in survey.places.take(leaked)
        ]
    if "balance" in remedies:
        if (survey.chars_N2 == 0).any():
            alone = "answers were judged one by one" if survey.labels else "examples are single"
            raise UserError(
                f"remedies: balance evens out the lengths of pairs, and these {alone}; leave it out"
            )
        drop(
            lambda left: _surplus(survey, left[train[left]]),
            "more chosen answers are longer than shorter, or the other way",
        )
    return Changes(dropped, moved, tuple(lines))


def clean(
    pairs: Sequence[PreferencePair], remedies: Sequence[Remedy]
) -> tuple[list[PreferencePair], Sequence[str]]:
    """Applies remedies to pairs in memory.

    Returns:
      The pairs that are left, and a line for each change.

    Raises:
      UserError: As `decide` does.
    """
    changes = decide(survey_pairs(pairs), remedies)
    return list(changes.apply(pairs)), changes.lines


def _surplus(survey: Survey, train: np.ndarray) -> np.ndarray:
    """Returns the pairs to drop so that as many chosen answers are longer as are shorter.

    Args:
      survey: The survey.
      train: i64, the TRAIN pairs that are left.
    """
    chosen, rejected = survey.chars_N2[train].T
    longer, shorter = train[chosen > rejected], train[chosen < rejected]
    larger, smaller = sorted((longer, shorter), key=len, reverse=True)
    # Which ones go depends on the pair alone, not on where it stands: the hashes draw lots.
    lots = np.lexsort([survey.first_N[larger], survey.prompt_N[larger]])
    return larger[lots[len(smaller) :]]

"""Contradictions between annotators, and how far they agree otherwise."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxdpo.data.bad_pair import show
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import pair_digest
from jaxdpo.evaluation.agreement import UNDEFINED, Estimate, cohen_kappa, share
from jaxdpo.feedback.judged import Judged
from jaxdpo.inspection.texts import answers, said


@dataclass(frozen=True)
class Agreement:
    """The agreement of people who judged the same things.

    Attributes:
      what: What was judged.
      judgements: Pairs of judgements of one thing by two annotators.
      agreed: The share of them that agree.
      kappa: Agreement beyond chance.
    """

    what: str
    judgements: int
    agreed: Estimate
    kappa: Estimate

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.judgements} judged twice, agreement {self.agreed}, κ {self.kappa}"
        )


def annotator_of(pair: PreferencePair) -> Any:
    """Returns the name of the person behind a collected pair; None where it is not known."""
    return pair.metadata["feedback"].get("annotator")


def comparisons(pairs: Iterable[PreferencePair]) -> list[tuple[list[int], list[int]]]:
    """Groups pairs by the two answers that they compare, whichever is preferred.

    An answer that was labelled by itself is compared with an empty one, preferred to it if it was
    found good.

    Returns:
      For each two answers to one prompt, in the order in which they first appear, the indices of
      the pairs that prefer the one, and of those that prefer the other.
    """
    found: dict[tuple[bytes, str, str], tuple[list[int], list[int]]] = {}
    for index, pair in enumerate(pairs):
        chosen, rejected = answers(pair)
        # Sorted, so that a pair and its opposite share one entry.
        low, high = sorted((chosen, rejected))
        both = found.setdefault((pair_digest(pair), low, high), ([], []))
        both[chosen == high].append(index)
    return list(found.values())


def by_majority(pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], int]:
    """Removes the pairs that most annotators contradict; returns the others and how many went.

    An annotator has one vote on two answers, or none where they contradict themselves; a pair
    without an annotator counts as someone else's. Where votes are even, neither side is left.
    """
    gone: set[int] = set()
    for sides in comparisons(pairs):
        if all(sides):
            balance = sum(_votes(pairs, sides))
            # A balance of 0 removes both sides.
            gone.update(sides[0] if balance <= 0 else ())
            gone.update(sides[1] if balance >= 0 else ())
    return [pair for i, pair in enumerate(pairs) if i not in gone], len(gone)


def _votes(pairs: Sequence[PreferencePair], sides: tuple[list[int], list[int]]) -> list[int]:
    """Returns 1 for each annotator on the first side, -1 for each on the second."""
    votes: Counter[Any] = Counter()
    for side, vote in zip(sides, (1, -1), strict=True):
        for index in side:
            # Whoever has no name is told from all others by the place of the pair.
            who = annotator_of(pairs[index])
            votes[("unnamed", index) if who is None else ("named", show(who))] += vote
    # Whoever clicked one side ten times has one vote still; who is on both sides has none.
    return [1 if vote > 0 else -1 for vote in votes.values() if vote]


def preference_agreement(pairs: Sequence[PreferencePair]) -> Agreement:
    """Measures how far annotators agree on which of two answers is better.

    Which answer stands first means nothing, so half of all judgements agree by chance: κ = 2p − 1.
    """
    twice = [
        one == two
        for sides in comparisons(pairs)
        for one, two in itertools.combinations(_votes(pairs, sides), 2)
    ]
    agreed = share(sum(twice), len(twice))
    kappa = Estimate(*(2 * value - 1 for value in agreed)) if twice else UNDEFINED
    return Agreement("two answers", len(twice), agreed, kappa)


def judgement_agreement(judged: Iterable[Judged]) -> list[Agreement]:
    """Measures how far each two annotators agree on which answers pass a criterion."""
    labels: _Labels = defaultdict(dict)
    for one in judged:
        who, passed = one.about.get("annotator"), one.judgement.passed
        if who is not None and passed is not None:
            labels[show(who)][one.key(), one.criterion] = passed
    return _between(labels, "")


def label_agreement(labelled: Iterable[PreferencePair]) -> list[Agreement]:
    """Measures how far each two annotators agree on which answers are good."""
    labels: _Labels = defaultdict(dict)
    for pair in labelled:
        who = annotator_of(pair)
        if who is not None and pair.label is not None:
            labels[show(who)][pair_digest(pair), said(pair.chosen)] = pair.label
    return _between(labels, "thumbs of ")


# Annotator ↦ what was judged ↦ the judgement.
_Labels = defaultdict[str, dict[tuple[Any, str], bool]]


def _between(labels: _Labels, what: str) -> list[Agreement]:
    found = []
    for (one, first), (two, second) in itertools.combinations(sorted(labels.items()), 2):
        # κ is of two raters over the items that both have rated.
        shared = [key for key in first if key in second]
        if shared:
            both = [first[key] for key in shared], [second[key] for key in shared]
            agreed = share(sum(a == b for a, b in zip(*both, strict=True)), len(shared))
            name = f"{what}{one} and {two}"
            found.append(Agreement(name, len(shared), agreed, cohen_kappa(*both)))
    return found

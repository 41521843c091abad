"""Trivial rules that tell chosen from rejected: what they can learn, DPO will learn first."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import pair_digest
from jaxdpo.inspection.texts import answers, words

_FOLDS = 5
# A rule counts when even the low end of its 95% interval is this far above a coin.
_NOTABLE = 0.6


@dataclass(frozen=True)
class Shortcut:
    """A trivial rule and how often it is right on pairs that it was not fitted to.

    Attributes:
      name: What it looks at.
      accuracy: Share of pairs it gets right; a pair on which it cannot decide counts as half.
      interval: Half of the 95% interval of the accuracy.
      detail: What it learned, in words.
    """

    name: str
    accuracy: float
    interval: float
    detail: str

    @property
    def notable(self) -> bool:
        """True if the rule does so well that a model would learn it."""
        return self.accuracy - self.interval > _NOTABLE

    def share(self) -> str:
        """Returns the accuracy with its interval, as text."""
        low, high = max(self.accuracy - self.interval, 0), min(self.accuracy + self.interval, 1)
        return f"{self.accuracy:.0%} of pairs (95% interval {100 * low:.0f} to {100 * high:.0f})"


def find_shortcuts(pairs: Sequence[PreferencePair]) -> list[Shortcut]:
    """Fits each rule to four fifths of the prompts and tries it on the fifth, five times.

    Of answers that were labelled one by one, each good one is set against a bad one. Where there is
    nothing to tell apart, as in supervised examples, there are no rules.
    """
    # By prompt: a rule is not tried on a prompt that it has seen.
    texts = [(answers(pair), pair_digest(pair)[16] % _FOLDS) for pair in pairs]
    alone = [one for one, pair in zip(texts, pairs, strict=True) if pair.label is not None]
    both = [(one, fold) for one, fold in texts if all(one)]
    both += _set_against_each_other(alone)
    if not both:
        return []
    told, folds = [one for one, _ in both], [fold for _, fold in both]
    found = [_length(told, folds)]
    for name, first_words in (("first word", 1), ("bag of words", None)):
        seen = [
            (set(words(chosen)[:first_words]), set(words(rejected)[:first_words]))
            for chosen, rejected in told
        ]
        found.append(_by_features(name, seen, folds))
    return found


_Told = tuple[str, str]


def _set_against_each_other(alone: Sequence[tuple[_Told, int]]) -> list[tuple[_Told, int]]:
    """Returns as many (good, bad) answers of each fold as it has of the rarer label."""
    found = []
    for fold in range(_FOLDS):
        good = [told[0] for told, of in alone if of == fold and told[0]]
        bad = [told[1] for told, of in alone if of == fold and told[1]]
        # The longer list's rest is left out: pairs of good and bad alone balance the labels.
        found += [(both, fold) for both in zip(good, bad, strict=False)]
    return found


def _length(told: Sequence[tuple[str, str]], folds: Sequence[int]) -> Shortcut:
    longer = [
        (len(chosen) > len(rejected)) - (len(chosen) < len(rejected)) for chosen, rejected in told
    ]
    right = 0.0
    for fold in range(_FOLDS):
        # The rule prefers whichever length the other four fifths do; equal lengths count as half.
        fitted = sum(sign for sign, of in zip(longer, folds, strict=True) if of != fold)
        tried = [sign for sign, of in zip(longer, folds, strict=True) if of == fold]
        right += sum(0.5 * (1 + sign * (1 if fitted >= 0 else -1)) for sign in tried)
    share = longer.count(1) / max(len(longer), 1)
    return _shortcut("length", right, len(told), f"the chosen answer is longer in {share:.0%}")


def _by_features(
    name: str, both: Sequence[tuple[set[str], set[str]]], folds: Sequence[int]
) -> Shortcut:
    """Adds up how much more often each feature is of chosen answers than of rejected ones.

    This is naive Bayes on the words that one answer has and the other has not: crude, and that is
    the point. What it can tell apart, a model will learn before anything that people meant.
    """
    right = 0.0
    for fold in range(_FOLDS):
        weights = _weights([pair for pair, of in zip(both, folds, strict=True) if of != fold])
        for (chosen, rejected), of in zip(both, folds, strict=True):
            if of == fold:
                score = sum(weights.get(word, 0.0) for word in chosen - rejected)
                score -= sum(weights.get(word, 0.0) for word in rejected - chosen)
                right += 0.5 * (1 + (score > 0) - (score < 0))
    weights = _weights(both)
    strongest = sorted(weights, key=lambda word: -abs(weights[word]))[:5]
    detail = ", ".join(f"{word!r} {'+' if weights[word] > 0 else '-'}" for word in strongest)
    return _shortcut(name, right, len(both), f"strongest: {detail}")


def _weights(both: Sequence[tuple[set[str], set[str]]]) -> dict[str, float]:
    chosen = Counter(word for c, r in both for word in c - r)
    rejected = Counter(word for c, r in both for word in r - c)
    # One is added to each count (Laplace), so that a word seen once on one side alone is no proof.
    return {
        word: math.log((chosen[word] + 1) / (rejected[word] + 1))
        for word in chosen.keys() | rejected.keys()
    }


def _shortcut(name: str, right: float, count: int, detail: str) -> Shortcut:
    accuracy = right / max(count, 1)
    # Wald's, with the variance of a coin: never narrower than it should be.
    return Shortcut(name, accuracy, 1.96 * math.sqrt(0.25 / max(count, 1)), detail)

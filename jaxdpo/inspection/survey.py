"""One pass over the pairs, which keeps a few hundred bytes of each: all that findings need.

A million pairs take 10 GB as Python objects. So nothing here holds the pairs, but for a sample
that the trivial rules are fitted to.
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import pair_digest
from jaxdpo.data.warnings import breaks_off, is_invisible
from jaxdpo.inspection.near_duplicates import NearDuplicates
from jaxdpo.inspection.places import Places, PlacesWriter
from jaxdpo.inspection.texts import answers, said, words
from jaxdpo.storage.files import json_digest

# Pairs that the trivial rules are fitted to and tried on, and whose prompts' languages are named:
# a share of them has a 95% interval of at most one point. Naming a language takes as long as all
# the rest that is done with a pair.
SAMPLE = 10_000
_LONG = 20


@dataclass(frozen=True, eq=False)
class Survey:
    """A few hundred bytes about each of N pairs.

    Attributes:
      places: Where each stands.
      prompt_N: u64 `[N]`, hash of the prompt and the tools.
      first_N: u64 `[N]`, hash of the preferred answer; where a bad answer was labelled by itself,
        of nothing.
      second_N: u64 `[N]`, hash of the other answer, or of nothing.
      train_N: bool `[N]`, whether it is in the TRAIN split.
      chars_N2: i32 `[N, 2]`, characters of both answers.
      near: i64, indices of those that nearly repeat an earlier one.
      flagged: Indices of pairs by the code of a finding that one pair shows by itself.
      labels: Labelled answers by label.
      turns: Pairs by the number of user messages in the prompt.
      sample: At most `SAMPLE` of the pairs, drawn by the hash of their prompts.
      single: Whether every answer is one message.
      weightless: Whether the weights of all are 0.
    """

    places: Places
    prompt_N: np.ndarray
    first_N: np.ndarray
    second_N: np.ndarray
    train_N: np.ndarray
    chars_N2: np.ndarray
    near: np.ndarray
    flagged: dict[str, np.ndarray]
    labels: dict[str, int]
    turns: dict[int, int]
    sample: tuple[PreferencePair, ...]
    single: bool
    weightless: bool

    def __len__(self) -> int:
        return len(self.places)

    def flag(self, code: str) -> np.ndarray:
        """Returns the indices of pairs that were flagged with a code, i64."""
        return self.flagged.get(code, np.zeros(0, np.int64))


class Surveyor:
    """Takes pairs one by one and keeps what a `Survey` holds.

    Args:
      weight_key: The field of the metadata that the pairs' weights come from, if they have any.
    """

    def __init__(self, weight_key: str | None = None) -> None:
        self._weight_key, self._weighted = weight_key, False
        self._places = PlacesWriter()
        self._hashes = array("Q")
        self._train, self._chars = array("b"), array("i")
        self._near = NearDuplicates()
        self._flagged: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._labels: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        # A heap of (-draw, -index, pair): the first is the one that goes when a lower one comes.
        self._sample: list[tuple[int, int, PreferencePair]] = []
        self._single = True
        self._count = 0

    def add(self, pair: PreferencePair) -> None:
        """Takes the next pair."""
        prompt, (first, second) = said(pair.prompt), answers(pair)
        digest = pair_digest(pair)
        self._places.add(pair.source)
        # 64 bits: two of a million prompts share a hash in one of 40 million data sets.
        self._hashes.extend((int.from_bytes(digest[:8], "big"), *_answer_hashes(pair)))
        self._train.append(pair.split == "TRAIN")
        self._chars.extend((len(first), len(second)))
        parts = words(prompt), words(first), words(second)
        self._near.add(parts)
        for code in _flags(pair, (prompt, first, second), parts[1], parts[2]):
            self._flagged[code].append(self._count)
        if pair.label is not None:
            self._labels[str(pair.label).lower()] += 1
        self._turns[sum(message["role"] == "user" for message in pair.prompt)] += 1
        self._single = self._single and len(pair.chosen) == 1 and len(pair.rejected) <= 1
        self._weighted = self._weighted or bool(pair.metadata.get(self._weight_key or ""))
        self._draw(pair, digest)
        self._count += 1

    def _draw(self, pair: PreferencePair, digest: bytes) -> None:
        # By the prompt's hash, so that the sample depends neither on the order of the lines nor on
        # chance; by other bytes of it than those that draw the split and the fold.
        entry = (-int.from_bytes(digest[24:32], "big"), -self._count, pair)
        if len(self._sample) < SAMPLE:
            heapq.heappush(self._sample, entry)
        elif entry > self._sample[0]:
            heapq.heapreplace(self._sample, entry)

    def finish(self) -> Survey:
        """Returns the survey; to be called once, after the last pair."""
        hashes = np.array(self._hashes, np.uint64).reshape(-1, 3)
        low, high = np.sort(hashes[:, 1:], axis=1).T
        # The same for a pair, its repeats, and the pair with its answers swapped. Multiplying one
        # of the sorted hashes keeps (a, b) apart from other answers with the same sum.
        same = hashes[:, 0] ^ (low * np.uint64(0x9E3779B97F4A7C15) + high)
        return Survey(
            places=self._places.finish(),
            prompt_N=hashes[:, 0],
            first_N=hashes[:, 1],
            second_N=hashes[:, 2],
            train_N=np.array(self._train, bool),
            chars_N2=np.array(self._chars, np.int32).reshape(-1, 2),
            near=self._near.find(same),
            flagged={code: np.array(found) for code, found in self._flagged.items()},
            labels=dict(self._labels),
            turns=dict(sorted(self._turns.items())),
            sample=tuple(entry[2] for entry in sorted(self._sample, key=lambda entry: -entry[1])),
            single=self._single,
            weightless=self._weight_key is not None and not self._weighted,
        )


def survey_pairs(pairs: Iterable[PreferencePair]) -> Survey:
    """Surveys pairs, which are read once and not kept."""
    surveyor = Surveyor()
    for pair in pairs:
        surveyor.add(pair)
    return surveyor.finish()


def _answer_hashes(pair: PreferencePair) -> tuple[int, int]:
    first, second = pair.token_ids[1:] if pair.token_ids else (pair.chosen, pair.rejected)
    hashes = [int(json_digest(answer)[:16], 16) for answer in (first, second)]
    # A bad answer stands in the second place, so that the same answer with the other label is the
    # pair turned round.
    return (hashes[1], hashes[0]) if pair.label is False else (hashes[0], hashes[1])


def _flags(
    pair: PreferencePair, texts: tuple[str, str, str], first: list[str], second: list[str]
) -> Iterable[str]:
    """Yields the codes of what one pair shows by itself.

    Args:
      pair: The pair.
      texts: Its prompt, preferred and other answer.
      first: Words of the preferred answer.
      second: Words of the other.
    """
    if words_almost_equal(first, second):
        yield "almost-equal"
    if breaks_off(texts[1]):
        yield "no-end"
    if any(map(is_invisible, texts)):
        yield "invisible"
    if pair.scores is not None and pair.scores[0] <= pair.scores[1]:
        yield "score"


def almost_equal(chosen: str, rejected: str) -> bool:
    """Returns whether two answers have the same words, or long ones all words but one."""
    return words_almost_equal(words(chosen), words(rejected))


def words_almost_equal(one: list[str], two: list[str]) -> bool:
    """Returns whether two lists of words are equal, or long ones one edit apart."""
    if one == two:
        return bool(one)
    # In a short answer the one word that differs may be all that matters: "four" and "five".
    if len(one) < _LONG:
        return False
    # The cutoff ends the comparison at the second edit.
    return Levenshtein.distance(one, two, score_cutoff=1) <= 1

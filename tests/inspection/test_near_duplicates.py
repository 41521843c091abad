"""Near-duplicates against the exact Jaccard similarity of all pairs of a few thousand texts."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from jaxdpo.inspection.near_duplicates import BANDS, PERMUTATIONS, ROWS, THRESHOLD, NearDuplicates

Parts = tuple[list[str], ...]


def runs_of(parts: Parts) -> set[tuple[str, ...]]:
    """Returns the three-word runs of a text's parts; of a shorter part, its words."""
    return {tuple(p[i : i + 3]) for p in parts if p for i in range(max(len(p) - 2, 1))}


def made_texts(count: int, seed: int) -> list[Parts]:
    """Makes texts of two parts; half of them are copies of an earlier one with words changed."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(400)]
    texts: list[Parts] = []
    for _ in range(count):
        if texts and rng.random() < 0.5:
            source = rng.choice(texts)
            rate = rng.choice([0.01, 0.02, 0.04, 0.06, 0.1, 0.2])
            copy = ([w if rng.random() > rate else rng.choice(words) for w in p] for p in source)
            texts.append(tuple(copy))
        else:
            sizes = rng.randrange(3, 40), rng.randrange(20, 120)
            texts.append(tuple([rng.choice(words) for _ in range(n)] for n in sizes))
    return texts


def highest_jaccard(texts: list[Parts]) -> np.ndarray:
    """Computes each text's highest similarity to an earlier one, by comparing it with them all."""
    runs = [runs_of(text) for text in texts]
    number: dict[tuple[str, ...], int] = {}
    holders: list[list[int]] = []
    highest = np.zeros(len(texts))
    sizes = np.array([len(each) for each in runs])
    for i, each in enumerate(runs):
        # Counting the common runs with every earlier text, through the texts that hold each run.
        common = np.zeros(len(texts), np.int64)
        for run in each:
            place = number.setdefault(run, len(number))
            if place == len(holders):
                holders.append([])
            common[holders[place]] += 1
            holders[place].append(i)
        if i:
            union = sizes[i] + sizes[:i] - common[:i]
            highest[i] = (common[:i] / np.maximum(union, 1)).max()
    return highest


def found_in(texts: list[Parts], same: np.ndarray | None = None) -> set[int]:
    finder = NearDuplicates()
    for text in texts:
        finder.add(text)
    return set(finder.find(np.arange(len(texts), dtype=np.uint64) if same is None else same))


def test_what_is_found_is_what_the_exact_similarity_says():
    """Bounds follow from the binomial law of the equal minima and from the banding.

    A text whose most similar earlier one has similarity s is found with probability at least
    P(candidate) - P(estimate < threshold), and one with highest similarity s is found by a wrong
    estimate with at most P(estimate ≥ threshold) for each of the few texts that it meets.
    """
    texts = made_texts(4000, seed=0)
    highest, found = highest_jaccard(texts), found_in(texts)
    was_found = np.isin(np.arange(len(texts)), list(found))
    least = int(np.ceil(THRESHOLD * PERMUTATIONS))
    candidate = 1 - (1 - highest**ROWS) ** BANDS
    passes = binom.sf(least - 1, PERMUTATIONS, highest)
    clear = highest >= 0.88
    # Binomial: 205 of 256 minima or more at s = 0.88 has probability 0.99993.
    expected_misses = (1 - candidate * passes)[clear].sum()
    assert clear.sum() > 500
    assert np.count_nonzero(clear & ~was_found) <= expected_misses + 3
    far = highest <= 0.7
    assert far.sum() > 1500
    # Each text meets at most two others in each band where it has a neighbour.
    expected_errors = (2 * BANDS * highest**ROWS * passes)[far].sum()
    assert np.count_nonzero(far & was_found) <= expected_errors + 3
    # Between, the share found rises with the similarity, and all in all the estimate is unbiased.
    middle = (highest > 0.7) & (highest < 0.88)
    expected = (candidate * passes)[middle].sum()
    spread = np.sqrt((passes * (1 - passes))[middle].sum())
    assert abs(was_found[middle].sum() - expected) <= 4 * spread + 0.02 * middle.sum()


def test_estimates_are_unbiased_and_err_no_more_than_minhash():
    """The share of equal minima is compared with the exact similarity of 1,000 pairs."""
    # A copy with a few words changed, so that all similarities from 0.2 to 1 occur.
    copies = NearDuplicates()
    exact_near = []
    rand = random.Random(2)
    for i in range(1000):
        words = [f"{i}w{rand.randrange(80)}" for _ in range(80)]
        rate = i / 5000
        copy = [w if rand.random() > rate else "other" for w in words]
        for text in (words, copy):
            copies.add((text,))
        a, b = runs_of((words,)), runs_of((copy,))
        exact_near.append(len(a & b) / len(a | b))
    copies.find(np.zeros(2000, np.uint64))
    share = (copies._minima(np.arange(0, 2000, 2)) == copies._minima(np.arange(1, 2000, 2))).mean(1)
    error = share - np.array(exact_near)
    deviation = np.sqrt(np.array(exact_near) * (1 - np.array(exact_near)) / PERMUTATIONS)
    assert abs(error.mean()) < 4 * deviation.mean() / np.sqrt(1000) + 1e-3
    # Standardised errors have a variance of one where the permutations are independent, and less
    # where they repel each other, as those of a circulant design do.
    known = deviation > 0
    assert (error[known] / deviation[known]).std() < 1.1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=3),
        min_size=1,
        max_size=12,
    )
)
def test_texts_with_the_same_runs_are_found_and_those_without_words_are_not(texts):
    """Short parts are one run, no run crosses from one part to the next, and order counts."""
    found = found_in([tuple(text) for text in texts])
    runs = [runs_of(tuple(text)) for text in texts]
    for i, each in enumerate(runs):
        if each and each in runs[:i]:
            assert i in found
        if not each or not any(each & earlier for earlier in runs[:i]):
            assert i not in found


def test_exact_repeats_are_left_to_those_who_look_for_them():
    text = (["a", "b", "c", "d"],)
    assert found_in([text, text, text]) == {1, 2}
    assert found_in([text, text, text], np.array([7, 7, 8], np.uint64)) == {2}


def test_a_thousand_times_the_same_text_costs_two_comparisons_each(monkeypatch):
    text = (["a", "b", "c", "d"],)
    finder = NearDuplicates()
    for _ in range(1000):
        finder.add(text)
    compared = []
    gather = NearDuplicates._minima
    monkeypatch.setattr(
        NearDuplicates, "_minima", lambda self, i: compared.append(len(i)) or gather(self, i)
    )
    assert len(finder.find(np.arange(1000, dtype=np.uint64))) == 999
    # Later and earlier of each comparison; those found in the first band are not compared again.
    assert sum(compared) <= 2 * 2 * 1000

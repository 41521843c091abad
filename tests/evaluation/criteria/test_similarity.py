"""Edit similarity against plain dynamic programming, and its cost on answers that repeat."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdpo.evaluation.criteria.builtin import sequence_similarity

WORDS = st.lists(st.sampled_from(["a", "b", "c", "tea"]), max_size=90)


def common_subsequence(one: list[str], two: list[str]) -> int:
    """Returns the length of the longest common subsequence, by the textbook recurrence."""
    above = [0] * (len(two) + 1)
    for a in one:
        row = [0]
        for j, b in enumerate(two):
            row.append(above[j] + 1 if a == b else max(row[j], above[j + 1]))
        above = row
    return above[-1]


@settings(max_examples=200, deadline=None)
@given(one=WORDS, two=WORDS)
def test_similarity_is_that_of_dynamic_programming(one: list[str], two: list[str]):
    total = len(one) + len(two)
    expected = 2 * common_subsequence(one, two) / total if total else 1.0
    assert sequence_similarity(one, two) == pytest.approx(expected, abs=1e-12)


class CountedWord(str):
    """A word that counts how often it is hashed or compared."""

    used = 0

    def __hash__(self) -> int:
        CountedWord.used += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        CountedWord.used += 1
        return super().__eq__(other)


def test_an_answer_that_repeats_itself_costs_a_few_looks_at_each_word():
    """Counts operations, not seconds: the cost must not grow with the number of repeats squared."""
    one = [CountedWord(word) for word in ["the", "answer", "is", "no", "because"] * 300]
    two = [CountedWord(word) for word in ["the", "answer", "is", "yes", "because"] * 300]
    CountedWord.used = 0
    # All words but "no" and "yes" are common, in order.
    assert sequence_similarity(one, two) == pytest.approx(0.8)
    assert len(one) <= CountedWord.used <= 10 * (len(one) + len(two))

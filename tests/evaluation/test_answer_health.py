"""Answers that do not end, say nothing or repeat themselves are counted, by hand-made examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdpo.evaluation.answer_health import WatchedAnswer, answer_metrics, collapsed, repetition
from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.evaluation.judgement import Example


def watched(text: str, ids: list[int], finished: bool = True) -> WatchedAnswer:
    messages = [{"role": "user", "content": "Say it in at most 3 words."}]
    return WatchedAnswer(Example(messages, text), np.array(ids, np.int32), finished)


def test_a_loop_of_two_tokens_repeats_all_but_its_first_two_ngrams():
    # 40 tokens hold 37 4-grams, of which two differ.
    assert repetition(np.tile([5, 6], 20)) == pytest.approx(35 / 37)


def test_distinct_tokens_repeat_nothing_and_short_answers_are_not_counted():
    assert repetition(np.arange(50)) == 0.0
    assert repetition(np.zeros(23, np.int32)) == 0.0
    assert repetition(np.zeros(24, np.int32)) == pytest.approx(20 / 21)


@given(st.lists(st.integers(0, 3), min_size=24, max_size=60))
def test_repetition_counts_as_a_set_of_tuples_does(tokens):
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    assert repetition(np.array(tokens)) == pytest.approx(1 - len(set(grams)) / len(grams))


def test_each_fault_has_its_share_and_an_answer_with_two_is_broken_once():
    answers = [
        watched("At nine o'clock.", [1, 2, 3]),
        watched(" \n", []),
        watched("la la", [7] * 30, finished=False),
        watched("a b c d e", list(range(9)), finished=False),
    ]
    found = answer_metrics(answers, [criterion_named({"name": "word_limit", "limit": 3})])
    low, high = (found.pop(f"answers/pass_rate/word_limit_{end}") for end in ("low", "high"))
    # Wilson's interval of 3 of 4.
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert found == {
        "answers/unfinished": 0.5,
        "answers/empty": 0.25,
        "answers/repetitive": 0.25,
        "answers/broken": 0.75,
        "answers/tokens": (3 + 0 + 30 + 9) / 4,
        "answers/pass_rate/word_limit": 0.75,
    }


def test_a_collapse_is_said_with_its_numbers_and_a_broken_base_is_not_one():
    broken = answer_metrics([watched("la", [7] * 30, finished=False)], [])
    fine = answer_metrics([watched("Nine.", [1])], [])
    assert collapsed(fine, fine, more=0.5) is None
    assert collapsed(broken, broken, more=0.5) is None
    said = collapsed(fine, broken, more=0.5)
    assert said is not None
    assert "100% of the answers" in said and "100% unfinished, 100% repetitive" in said
    assert "0% were before training" in said

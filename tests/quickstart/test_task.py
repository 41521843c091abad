"""The task is what it says: messages read back, answers judged as by hand, names held out."""

import random

import pytest

from jaxdpo.quickstart.task import (
    ENDS,
    STARTS,
    make_request,
    passes,
    read_request,
    score,
    write_answer,
)

PROMPT = (
    "Balex Tozum opens at 9, costs 14 euros, takes 2 hours and seats 60 guests.\n"
    "When does it open and how long does it take? Answer in at most {} words."
)


@pytest.mark.parametrize(
    ("limit", "answer", "verdict"),
    [
        (9, "Balex Tozum opens at 9 and takes 2 hours.", True),
        (9, "Opens at 9 and takes 2 hours.", True),
        (7, "Opens at 9 and takes 2 hours.", True),
        (8, "Balex Tozum opens at 9 and takes 2 hours.", False),  # nine words
        (6, "Opens at 9 and takes 2 hours.", False),  # seven words
        (30, "Opens at 10 and takes 2 hours.", False),  # wrong value
        (30, "Opens at 9.", False),  # only one of two
        (30, "Takes 2 hours and opens at 9.", False),  # order of the question
        (30, "Opens at 9, costs 14 euros and takes 2 hours.", False),  # nobody asked for the price
        (30, "Balex Tolex opens at 9 and takes 2 hours.", False),  # another museum
        (30, "I believe that Balex Tozum opens at 9 and takes 2 hours.", False),
        (30, "Opens at 9 and takes 2 hours. I hope this helps.", False),
        (30, "", False),
    ],
)
def test_answers_are_judged_as_by_hand(limit, answer, verdict):
    assert passes(PROMPT.format(limit), answer) is verdict


def test_the_longer_of_two_right_answers_scores_more():
    """So that brevity beyond the limit is not what pairs teach."""
    messages = [{"role": "user", "content": PROMPT.format(9)}]
    answers = ("Balex Tozum opens at 9 and takes 2 hours.", "Opens at 9 and takes 2 hours.", "Hm.")
    judged = [score(messages, each, {}) for each in answers]
    assert [each.passed for each in judged] == [True, True, False]
    assert judged[0].value > judged[1].value > judged[2].value == 0


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_a_message_says_all_of_its_request(split):
    rng = random.Random(1)
    for request in (make_request(split, rng) for _ in range(300)):
        assert read_request(request.prompt()) == request


def test_every_limit_can_be_met_and_half_leave_no_room_for_the_name():
    rng = random.Random(2)
    requests = [make_request("TRAIN", rng) for _ in range(2000)]
    assert all(passes(request.prompt(), request.short_answer()) for request in requests)
    roomy = sum(passes(request.prompt(), request.long_answer()) for request in requests)
    assert 0.45 < roomy / len(requests) < 0.55  # 4.5 standard deviations


def test_past_answers_state_the_facts_asked_for_and_most_are_poor():
    rng = random.Random(3)
    passed = 0
    for request in (make_request("TRAIN", rng) for _ in range(2000)):
        answer = write_answer(request, rng)
        for kind in request.asked:
            assert kind.clause.format(request.facts[kind]).lower() in answer.lower()
        passed += passes(request.prompt(), answer)
    assert 0.25 < passed / 2000 < 0.4


def test_no_museum_is_in_both_splits_and_every_word_part_is_in_train():
    rng = random.Random(4)
    train, test = (
        {make_request(split, rng).name for _ in range(2000)} for split in ("TRAIN", "TEST")
    )
    assert not train & test
    words = {word for name in train for word in name.split()}
    assert {word[:2] for word in words} == set(STARTS)
    assert {word[2:] for word in words} == set(ENDS)


def test_requests_are_a_function_of_the_seed():
    first, again, other = (
        [make_request("TEST", random.Random(seed)).prompt()] for seed in (5, 5, 6)
    )
    assert first == again != other

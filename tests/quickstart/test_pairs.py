"""Pairs from judged answers, by hand and from answers of known quality."""

import itertools
import random

from jaxdpo.quickstart.pairs import judge, sample_pairs
from jaxdpo.quickstart.task import passes, read_request, split_of, write_answer

REQUEST = read_request(
    "Balex Tozum opens at 9, costs 14 euros and takes 2 hours.\n"
    "When does it open? Answer in at most 6 words."
)
LONG, SHORT, WRONG = "Balex Tozum opens at 9.", "Opens at 9.", "Opens at 8."


def test_the_longest_passing_answer_is_chosen_and_a_failing_one_rejected():
    for seed in range(5):
        assert judge(REQUEST, [SHORT, WRONG, LONG], random.Random(seed)) == (LONG, WRONG)


def test_every_failing_answer_may_be_rejected():
    answers = [WRONG, SHORT, f"{LONG} I hope this helps."]
    judged = {judge(REQUEST, answers, random.Random(seed)) for seed in range(20)}
    assert judged == {(SHORT, answers[0]), (SHORT, answers[2])}


def test_no_pair_where_all_pass_or_all_fail():
    assert judge(REQUEST, [SHORT, LONG], random.Random(0)) is None
    assert judge(REQUEST, [WRONG, WRONG], random.Random(0)) is None
    assert judge(REQUEST, [], random.Random(0)) is None


def test_records_are_judged_pairs_of_their_split():
    rng = random.Random(1)

    def answer(prompts):
        written = [write_answer(read_request(prompt), rng) for prompt in prompts]
        return [None if number % 7 == 0 else text for number, text in enumerate(written)]

    records = list(itertools.islice(sample_pairs("TEST", answer, rng), 300))
    prompts = {record["messages"][0]["content"] for record in records}
    assert len(prompts) == 300
    for record in records:
        user, chosen = record["messages"]
        rejected = record["rejected_message"]
        assert (user["role"], chosen["role"], rejected["role"]) == ("user", *["assistant"] * 2)
        assert passes(user["content"], chosen["content"])
        assert not passes(user["content"], rejected["content"])
        assert record["split"] == split_of(read_request(user["content"]).name) == "TEST"

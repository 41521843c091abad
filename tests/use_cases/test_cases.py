"""The tasks: what their writers write, and what their criteria say of answers."""

import itertools
import re

import pytest

from jaxdpo.evaluation.judgement import Example
from jaxdpo.quickstart.task import split_of
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.task import mean_quality

NOTE = (
    "Three facts on Tarik Dolex, which lies by the river: opens at 9, costs only 14, "
    "takes about 2.\nSummarise in at most 13 words."
)
PLAIN = "It opens at 14, costs only 14."
ASKED = f"Note on Tarik Dolex:\n{PLAIN}\nHighlight what it costs."
# Use case, prompt, answer; whether it passes; and measures of its quality.
JUDGED = [
    (
        *("word_limit", NOTE, "On Tarik Dolex: opens at 9, costs only 14, takes about 2."),
        *(True, {"facts kept": 1, "at least 70% of the limit": 1, "well formed": 1}),
    ),
    (
        *("word_limit", NOTE, "The note on Tarik Dolex: opens at 9, costs only 14, takes about 2."),
        *(False, {"facts kept": 1, "well formed": 1}),
    ),
    (
        *("word_limit", NOTE, "Briefly: opens at 9, takes about 2."),
        *(True, {"facts kept": 2 / 3, "at least 70% of the limit": 0, "well formed": 1}),
    ),
    (
        *("word_limit", NOTE, "On Tarik Dolex: opens at 9, opens at 9, takes about 5."),
        *(True, {"facts kept": 1 / 3, "well formed": 0}),
    ),
    (
        *("highlight", ASKED, "It opens at 14, costs only **14**."),
        *(True, {"text unchanged": 1, "exactly one highlight": 1}),
    ),
    (
        *("highlight", ASKED, "It opens at **14**, costs only 14."),
        *(False, {"text unchanged": 1, "exactly one highlight": 1}),
    ),
    (
        *("highlight", ASKED, "It opens at 14, **costs only 14**."),
        *(False, {"text unchanged": 1, "exactly one highlight": 1}),
    ),
    (
        *("highlight", ASKED, "It opens at **14**, costs only **14**."),
        *(False, {"text unchanged": 1, "exactly one highlight": 0}),
    ),
    (
        *("highlight", ASKED, "It opens at 12, costs only **14**."),
        *(True, {"text unchanged": 0, "exactly one highlight": 1}),
    ),
    ("highlight", ASKED, PLAIN, False, {"text unchanged": 1, "exactly one highlight": 0}),
]


def judge(name, prompt, completion):
    return CASES[name].judge(Example([{"role": "user", "content": prompt}], completion))


@pytest.mark.parametrize(("name", "prompt", "completion", "passed", "quality"), JUDGED)
def test_judgement_and_quality(name, prompt, completion, passed, quality):
    assert judge(name, prompt, completion).passed is passed
    measured = CASES[name].quality(prompt, completion)
    assert {key: measured[key] for key in quality} == pytest.approx(quality)


def test_the_best_answer_scores_most():
    """Each prompt's answers above the first are right in all; none that fails has a score."""
    scores = {}
    for name, prompt, completion, passed, _ in JUDGED:
        judgement = judge(name, prompt, completion)
        assert passed or judgement.score == 0
        scores.setdefault(name, []).append(judgement.score)
    for of_case in scores.values():
        assert of_case[0] > max(of_case[1:])


@pytest.mark.parametrize("name", CASES)
def test_writers_fail_about_as_often_as_published(name):
    case = CASES[name]
    for domain in ("in-domain", "shifted"):
        examples = list(itertools.islice(case.written(domain, "TRAIN", "test"), 2000))
        failed = sum(not judge(name, *example).passed for example in examples)
        assert 1 / 1.5 < failed / 20 / case.published[0] < 1.5
        # But for that they are faultless.
        passing = [example for example in examples if judge(name, *example).passed]
        assert set(mean_quality(case.quality(*e) for e in passing).values()) == {1.0}


@pytest.mark.parametrize("name", CASES)
def test_seeds_splits_and_domains(name):
    case = CASES[name]

    def prompts(domain, split, seed):
        return [e.prompt for e in itertools.islice(case.written(domain, split, seed), 300)]

    train, test = prompts("in-domain", "TRAIN", "0"), prompts("in-domain", "TEST", "0")
    assert len(set(train)) == 300
    assert train == prompts("in-domain", "TRAIN", "0")
    assert not set(train) & set(prompts("in-domain", "TRAIN", "1"))
    word = r"[BDGKMT][ao][lrv](?:ex|ik|um|os)"
    names = re.compile(rf"{word} {word}\b")
    for split, drawn in (("TRAIN", train), ("TEST", test)):
        assert {split_of(found) for prompt in drawn for found in names.findall(prompt)} == {split}
    # Shifted prompts give another instruction about other things.
    shifted = prompts("shifted", "TEST", "0")
    nameless = [[names.sub("", prompt) for prompt in drawn] for drawn in (train, shifted)]
    assert not set(nameless[0]) & set(nameless[1])

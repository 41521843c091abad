"""Tasks whose writers are wrong in most places: what they write, and what is said of answers."""

import itertools

import pytest

from jaxdpo.evaluation.judgement import Example
from jaxdpo.use_cases.cases import CASES, GROUPS
from jaxdpo.use_cases.places import WRONG, split_answer
from jaxdpo.use_cases.task import mean_quality

NOTE = "Note on Tarik Dolex: opens at 9, closes by 17, costs only 14."
LIMIT = f"{NOTE}\nGive each in at most 2 words."
WIDE = f"{NOTE}\nGive each in at most 3 words."
BOLD = f"{NOTE}\nHighlight opens and costs."
FORM = "Tarik Dolex has price 14, rooms 9.\nExtract price, rooms, floors and gates."
LABEL = "Query: Tarik Dolex with pools and bars.\nResults: desks, bars, pools and lifts."

# Use case, prompt, answer; right places; whether it is well formed, and whether facts are kept.
JUDGED = [
    ("limits", LIMIT, "opens 9, closes 17, costs 14.", 3, True),
    ("limits", LIMIT, "opens at 9, closes 17, costs only 14.", 1, True),
    # Three words are within this limit, and two are too; four are not.
    ("limits", WIDE, "opens at 9, closes 17, costs only exactly 14.", 2, True),
    # Within the limit and wrong: another value, another fact, a place too few or too many.
    ("limits", LIMIT, "opens 8, closes 17, costs 14.", 2, False),
    ("limits", LIMIT, "closes 17, closes 17, costs 14.", 2, False),
    ("limits", LIMIT, "opens 9, closes 17.", 2, False),
    ("limits", LIMIT, "opens 9, closes 17, costs 14, costs 14.", 3, False),
    ("highlights", BOLD, "opens at **9**, closes by 17, costs only **14**.", 3, True),
    ("highlights", BOLD, "opens at 9, closes by **17**, costs only 14.", 0, True),
    ("highlights", BOLD, "opens at **8**, closes by 17, costs only **14**.", 2, False),
    ("forms", FORM, "price 14, rooms 9, floors none, gates none.", 4, True),
    ("forms", FORM, "price 14, rooms 9, floors 3, gates 5.", 2, True),
    ("forms", FORM, "price 13, rooms none, floors none, gates none.", 2, False),
    ("labels", LABEL, "desks no, bars yes, pools yes, lifts no.", 4, True),
    ("labels", LABEL, "desks yes, bars no, pools no, lifts yes.", 0, True),
    ("labels", LABEL, "desks no, bars yes, pools maybe, lifts no.", 3, False),
    ("labels", LABEL, "", 0, False),
]


@pytest.mark.parametrize(("name", "prompt", "answer", "right", "formed"), JUDGED)
def test_judgement_and_quality(name, prompt, answer, right, formed):
    case = CASES[f"systematic_{name}"]
    places = 3 if prompt.startswith("Note") else 4
    judgement = case.judge(Example([{"role": "user", "content": prompt}], answer))
    assert judgement.passed == (formed and right == places)
    assert judgement.score == pytest.approx(right / max(places, len(split_answer(answer))))
    measured = case.quality(prompt, answer)
    assert measured["places right"] == pytest.approx(right / places)
    assert measured["well formed"] == formed
    assert (measured["facts kept"] == 1) == (formed or "costs 14, costs 14" in answer)


@pytest.mark.parametrize("name", GROUPS["systematic"])
@pytest.mark.parametrize("domain", ["in-domain", "shifted"])
def test_writers_are_wrong_in_most_places_and_well_formed(name, domain):
    case = CASES[name]
    examples = list(itertools.islice(case.written(domain, "TRAIN", "test"), 1000))
    measured = mean_quality(case.quality(*example) for example in examples)
    right = measured.pop("places right")
    # Two places of ten are given in a form, and never wrong; 8,000 draws are known to ± 0.01.
    expected = (2 + 8 * (1 - WRONG)) / 10 if name.endswith("forms") else 1 - WRONG
    assert right == pytest.approx(expected, abs=0.015)
    assert set(measured.values()) == {1.0}
    passed = [
        case.judge(Example([{"role": "user", "content": one.prompt}], one.answer)).passed
        for one in examples
    ]
    assert not any(passed)

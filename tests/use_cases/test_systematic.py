"""Tasks whose writers are wrong in most places: what they write, and what is said of answers."""

import itertools

import pytest

from jaxdpo.evaluation.judgement import Example
from jaxdpo.use_cases.cases import CASES, GROUPS
from jaxdpo.use_cases.places import WRONG, split_answer
from jaxdpo.use_cases.systematic import THINGS
from jaxdpo.use_cases.task import mean_quality

LIMIT = "Note on Tarik Dolex: two words on price and beds, three on the others."
BOLD = "List Tarik Dolex. Highlight rooms and desks."
FORM = "Tarik Dolex has price, stars and beds. Fill in the form."
LABEL = "Query of Tarik Dolex: rooms and seats. Label the results."

# Use case, prompt, answer; right places; whether it is well formed.
JUDGED = [
    *(
        ("limits", LIMIT, f"price {price}, {middle}, beds {beds}, desks very good.", right, formed)
        for price, beds, right, formed in (
            ("good", "good", 8, True),
            ("very good", "very good", 6, True),
            # Not about beds, or not of this form.
            ("good", "bad", 7, False),
            ("good", "good, beds good", 7, False),
        )
        for middle in (
            "rooms very good, stars very good, floors very good, seats good, doors very good",
        )
    ),
    # Fewer words than allowed are right too, and more are not.
    (
        *("limits", LIMIT, ", ".join(f"{thing} good" for thing in THINGS["in-domain"]) + "."),
        *(8, True),
    ),
    (
        *("limits", LIMIT, ", ".join(f"{t} very very good" for t in THINGS["in-domain"]) + "."),
        *(0, True),
    ),
    (
        *("highlights", BOLD, "the price, the **rooms**, the stars, the floors, the seats, the "),
        *(5, False),
    ),
    (
        "highlights",
        BOLD,
        "the price, the **rooms**, the stars, the floors, the seats, the doors, the beds, "
        "the **desks**.",
        *(8, True),
    ),
    (
        "highlights",
        BOLD,
        "the **price**, the rooms, the **stars**, the **floors**, the **seats**, the **doors**, "
        "the **beds**, the desks.",
        *(0, True),
    ),
    (
        "forms",
        FORM,
        "price given, rooms none, stars given, floors none, seats none, doors none, beds given, "
        "desks none.",
        *(8, True),
    ),
    (
        "forms",
        FORM,
        "price none, rooms 4, stars given, floors 7, seats given, doors none, beds given, desks 3.",
        *(3, True),
    ),
    (
        "labels",
        LABEL,
        "price no, rooms yes, stars no, floors no, seats yes, doors no, beds no, desks no.",
        *(8, True),
    ),
    (
        "labels",
        LABEL,
        "price yes, rooms no, stars maybe, floors no, seats yes, doors no, beds no, desks no.",
        *(5, False),
    ),
    ("labels", LABEL, "", 0, False),
]


@pytest.mark.parametrize(("name", "prompt", "answer", "right", "formed"), JUDGED)
def test_judgement_and_quality(name, prompt, answer, right, formed):
    case = CASES[f"systematic_{name}"]
    judgement = case.judge(Example([{"role": "user", "content": prompt}], answer))
    assert judgement.passed == (formed and right == 8)
    assert judgement.score == pytest.approx(right / max(8, len(split_answer(answer))))
    measured = case.quality(prompt, answer)
    assert measured["places right"] == pytest.approx(right / 8)
    assert measured["well formed"] == formed


@pytest.mark.parametrize("name", GROUPS["systematic"])
@pytest.mark.parametrize("domain", ["in-domain", "shifted"])
def test_writers_are_wrong_in_most_places_and_well_formed(name, domain):
    case = CASES[name]
    examples = list(itertools.islice(case.written(domain, "TRAIN", "test"), 1000))
    measured = mean_quality(case.quality(*example) for example in examples)
    right = measured.pop("places right")
    # 8,000 draws are known to ± 0.01.
    assert right == pytest.approx(1 - WRONG, abs=0.015)
    assert set(measured.values()) == {1.0}
    passed = [
        case.judge(Example([{"role": "user", "content": one.prompt}], one.answer)).passed
        for one in examples
    ]
    assert not any(passed)

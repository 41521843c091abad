"""Hallucination: what its criterion and its measures say of answers."""

import pytest

from jaxdpo.evaluation.judgement import Example
from jaxdpo.use_cases.hallucination import USE_CASE, quality

PROMPT = (
    "Tarik Dolex lies by the river: price 14, rooms 9, stars 4.\nExtract price, floors and stars."
)


@pytest.mark.parametrize(
    ("answer", "passed", "found", "well_formed"),
    [
        ("On Tarik Dolex: price 14, floors none, stars 4.", True, 1, 1),
        # Made up; another field's value; another value than the text's.
        ("On Tarik Dolex: price 14, floors 12, stars 4.", False, 1, 1),
        ("On Tarik Dolex: price 14, floors 9, stars 4.", False, 1, 1),
        ("On Tarik Dolex: price 13, floors none, stars 4.", False, 1 / 2, 1),
        ("On Tarik Dolex: price 3, price 14, stars 4.", False, 1, 0),
        # True, but of what nobody asked for, or less than there is.
        ("On Tarik Dolex: price 14, rooms 9, stars 4.", True, 1, 0),
        ("On Tarik Dolex: price none, floors none, stars 4.", True, 1 / 2, 1),
        ("On Tarik Dolem: price 14, floors none, stars 4.", True, 1, 0),
        ("", True, 0, 0),
    ],
)
def test_judgement_and_quality(answer, passed, found, well_formed):
    judgement = USE_CASE.judge(Example([{"role": "user", "content": PROMPT}], answer))
    assert judgement.passed is passed
    # Of these answers the first alone is right in all.
    whole = passed and found == well_formed == 1
    assert judgement.score == pytest.approx(1 if whole else 0.2 * passed)
    measured = {"values found": found, "well formed": well_formed}
    assert quality(PROMPT, answer) == pytest.approx(measured)

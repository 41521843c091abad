"""Result relevance: what its criterion and its measures say of answers."""

import pytest

from jaxdpo.evaluation.judgement import Example
from jaxdpo.use_cases.relevance import USE_CASE, quality

QUERY = "Query: inn with pools and bars."
LACKING = f"Tarik Dolex, inn by the river: pools 3, desks 4, beds 2.\n{QUERY}"
WHOLE = f"Tarik Dolex, inn on a hill: pools 3, bars 4, beds 2.\n{QUERY}"


@pytest.mark.parametrize(
    ("prompt", "answer", "passed", "score", "right", "well_formed"),
    [
        (LACKING, "Has pools yes, bars none. Irrelevant.", True, 1, 1, 1),
        (LACKING, "Has pools yes, bars none. Relevant.", False, 0, 1, 1),
        (WHOLE, "Has pools yes, bars yes. Relevant.", True, 1, 1, 1),
        (WHOLE, "Has pools yes, bars yes. Irrelevant.", False, 0, 1, 1),
        # The right label for a wrong reason.
        (LACKING, "Has pools none, bars none. Irrelevant.", True, 0.2, 0, 1),
        (WHOLE, "Has pools yes, bars none. Relevant.", True, 0.2, 0, 1),
        # Of another feature, or of too few; no reason at all; no label, two, or more than a label.
        (WHOLE, "Has pools yes, beds yes. Relevant.", True, 0.2, 0, 0),
        (WHOLE, "Has pools yes. Relevant.", True, 0.2, 0, 0),
        (WHOLE, "Relevant.", False, 0, 0, 0),
        (WHOLE, "Has pools yes, bars yes.", False, 0, 0, 0),
        (WHOLE, "Has pools yes, bars yes. Relevant. Irrelevant.", False, 0, 0, 0),
        (WHOLE, "Has pools yes, bars yes. Relevant. Has", False, 0, 0, 0),
        (LACKING, "", False, 0, 0, 0),
    ],
)
def test_judgement_and_quality(prompt, answer, passed, score, right, well_formed):
    judgement = USE_CASE.judge(Example([{"role": "user", "content": prompt}], answer))
    assert (judgement.passed, judgement.score) == (passed, pytest.approx(score))
    recall = "recall of relevant" if prompt == WHOLE else "recall of irrelevant"
    measured = {recall: passed, "right reason": right, "well formed": well_formed}
    assert quality(prompt, answer) == measured

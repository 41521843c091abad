"""Result relevance: what its criterion and its measures say of answers."""

import pytest

from jaxdpo.evaluation.judgement import Example
from jaxdpo.use_cases.relevance import judge, quality

QUERY = "Query: style quiet, kind inn, in Tarik Dolex."
OTHER_TRAIT = f"{QUERY}\nResult: looks loud, called inn, by the river."
OTHER_KIND = f"{QUERY}\nResult: looks quiet, called bar, on a hill."
SAME = f"{QUERY}\nResult: looks quiet, called inn, by the river."


@pytest.mark.parametrize(
    ("prompt", "answer", "passed", "score", "well_formed"),
    [
        (
            OTHER_TRAIT,
            "So style quiet looks loud: other, kind inn called inn: same. Irrelevant.",
            *(True, 1, 1),
        ),
        (
            OTHER_TRAIT,
            "So style quiet looks loud: other, kind inn called inn: same. Relevant.",
            False,
            0,
            1,
        ),
        (
            OTHER_KIND,
            "So style quiet looks quiet: same, kind inn called bar: other. Irrelevant.",
            *(True, 1, 1),
        ),
        (
            SAME,
            "So style quiet looks quiet: same, kind inn called inn: same. Relevant.",
            True,
            1,
            1,
        ),
        (
            SAME,
            "So style quiet looks quiet: same, kind inn called inn: same. Irrelevant.",
            False,
            0,
            1,
        ),
        # The right label for a wrong reason, or none; and no label at all.
        (
            SAME,
            "So style quiet looks loud: other, kind inn called inn: same. Relevant.",
            True,
            0.2,
            0,
        ),
        (SAME, "That is so. Relevant.", True, 0.2, 0),
        (SAME, "So style quiet looks quiet: same, kind inn called inn: same.", False, 0, 0),
    ],
)
def test_judgement_and_quality(prompt, answer, passed, score, well_formed):
    judgement = judge(Example([{"role": "user", "content": prompt}], answer))
    assert (judgement.passed, judgement.score) == (passed, pytest.approx(score))
    recall = "recall of relevant" if prompt == SAME else "recall of irrelevant"
    assert quality(prompt, answer) == {recall: passed, "well formed": well_formed}

"""What is known of training's course, measured through the program: set JAXDPO_TEST_TRUTH=1.

These take some minutes of processor time; `python -m tests.truth.figures` draws the same figures.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.truth.measured import courtesies_by_beta, displaced_answers, rejected_answers

pytestmark = pytest.mark.skipif(
    not os.environ.get("JAXDPO_TEST_TRUTH"),
    reason="takes four minutes of processor time; set JAXDPO_TEST_TRUTH=1",
)


def test_supervised_training_raises_rejected_answers_too(tmp_path: Path) -> None:
    """Log π of rejected answers rises under SFT on the chosen ones, and falls under DPO.

    Hong et al. 2024 (ORPO, arXiv 2403.07691), figure 3: what chosen and rejected answers have in
    common is learnt from the chosen ones alone. Answers are of TEST, which neither run has seen. It
    fails if DPO's rejected term has the wrong sign, or if `sft` trains on rejected answers the
    other way round.
    """
    found = rejected_answers(tmp_path)
    assert found.supervised > found.before + 5
    assert found.dpo < found.before - 1


def test_ches_names_the_pairs_that_displace(tmp_path: Path) -> None:
    """The higher a third's CHES scores, the more log π of its own chosen answers falls.

    Razin et al. 2024 (arXiv 2410.08847), section 6.1 and figure 2: models trained on pairs of low,
    middle and high scores. A score with the wrong sign, or of other hidden states, would not order
    the thirds.
    """
    found = displaced_answers(tmp_path)
    by_group = [found.change[found.group == number].mean() for number in range(3)]
    assert by_group[0] > by_group[1] > by_group[2]
    assert spearmanr(found.ches, found.change).statistic < -0.3


def test_the_true_score_has_a_hump(tmp_path: Path) -> None:
    """With a proxy for the criterion, less β buys KL and then a worse true score.

    Rafailov et al. 2024 (arXiv 2406.02900), figure 1, through file, training and export; the
    closed form is in `test_overoptimisation`. The proxy's own score goes on rising.
    """
    found = courtesies_by_beta(tmp_path, (2.0, 1.0, 0.3, 0.1))
    distance, true, proxy = np.array(found).T
    assert (np.diff(distance) > 0).all()
    assert (np.diff(proxy) > 0).all()
    assert true.argmax() in (1, 2)
    assert true[-1] < true[0] - 1

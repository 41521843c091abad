"""The same truths through the program: file, packing, reference, training, export, and torch.

`python -m jaxdpo.train` trains a small transformer on answers of one token. What it learned is read
from the exported folder by transformers and torch, and compared with closed forms.
"""

from pathlib import Path

import numpy as np
import pytest
import statsmodels.api
from scipy.special import expit

from tests.folders import write_model
from tests.truth.bandit import answer_logps, train, write_comparisons
from tests.truth.tabular import bradley_terry_comparisons, log_softmax

BETA = 0.5
# Two prompts in one run: comparisons with noise of ten answers, and weighted ones of eight.
NOISY, WEIGHTED, ARMS = (7, 8, 9), (17, 18, 19), (27, 28, 29)
SCORES = np.random.default_rng(5).normal(0, 1, 10)
COMPARED = 1536
REWARDS = np.array([1.0, 0.7, 0.4, 0.1, 0.0, -0.3, -0.6, -0.9])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("start") / "model")


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Chosen and rejected answers of noisy comparisons."""
    rng = np.random.default_rng(11)
    first = rng.integers(0, 10, COMPARED)
    second = (first + rng.integers(1, 10, COMPARED)) % 10
    wins = rng.random(COMPARED) < expit(SCORES[first] - SCORES[second])
    return np.where(wins, first, second), np.where(wins, second, first)


@pytest.fixture(scope="module")
def trained(start: Path) -> Path:
    chosen, rejected = draw()
    noisy = [(NOISY, int(a), int(b), 1.0) for a, b in zip(chosen, rejected, strict=True)]
    exact = bradley_terry_comparisons(REWARDS)
    weighted = [
        (WEIGHTED, int(a), int(b), float(weight))
        for a, b, weight in zip(exact.chosen, exact.rejected, exact.weights, strict=True)
    ]
    data = start.parent / "compared.jsonl"
    sizes = write_comparisons(data, noisy + weighted)
    run = start.parent / "run"
    return train(start, data, run, f"loss.beta={BETA}", "training.epochs=300", *sizes)


def test_implicit_reward_is_the_bradley_terry_estimate(start: Path, trained: Path) -> None:
    """β log π/ref in torch is statsmodels' maximum-likelihood score, within 0.02.

    Rafailov et al. 2023 (arXiv 2305.18290), section 5.1. Scores lie 3 apart: a reference scored on
    other tokens, a pair packed into another's context, a label lost on the way or a weight matrix
    exported transposed would each move them by more.
    """
    chosen, rejected = draw()
    design = np.zeros((COMPARED, 10))
    design[np.arange(COMPARED), chosen] = 1
    design[np.arange(COMPARED), rejected] = -1
    # statsmodels wants both outcomes among its rows.
    outcome = np.arange(COMPARED) % 2
    design[outcome == 0] *= -1
    fitted = statsmodels.api.Logit(outcome, design[:, 1:]).fit(disp=False)
    expected = np.append(0, fitted.params)
    rewards = BETA * (answer_logps(trained, NOISY, 10) - answer_logps(start, NOISY, 10))
    assert rewards - rewards.mean() == pytest.approx(expected - expected.mean(), abs=0.02)


def test_the_model_is_the_optimum_of_rlhf(start: Path, trained: Path) -> None:
    """Among its answers the trained model is π* ∝ ref · exp(r/β) (equation 4 of the paper).

    The comparisons are weighted by how often people would make them, by `data.weight_key`: unread
    weights would make all answers equal. Total variation is at most 0.01.
    """
    policy = log_softmax(answer_logps(trained, WEIGHTED, 8))
    optimum = log_softmax(answer_logps(start, WEIGHTED, 8) + REWARDS / BETA)
    assert np.abs(np.exp(policy) - np.exp(optimum)).sum() / 2 < 0.01
    before = log_softmax(answer_logps(start, WEIGHTED, 8))
    assert np.abs(np.exp(before) - np.exp(optimum)).sum() / 2 > 0.2


@pytest.mark.slow
def test_ipo_stays_where_its_closed_form_says(start: Path) -> None:
    """Three arms that are always ordered: IPO's log-ratios are (2, 1, 0)/3τ (arXiv 2310.12036).

    DPO, and IPO without its target, would go on. Least squares of the three targets 1/2τ, here of a
    model whose three answers do not begin equal.
    """
    tau, data = 0.25, start.parent / "arms.jsonl"
    sizes = write_comparisons(data, [(ARMS, a, b, 1.0) for a, b in ((0, 1), (1, 2), (0, 2))])
    settings = ("loss.type=ipo", f"loss.beta={tau}", "training.epochs=150")
    trained = train(start, data, start.parent / "ipo", *settings, *sizes)
    logratios = answer_logps(trained, ARMS, 3) - answer_logps(start, ARMS, 3)
    expected = np.array([2, 1, 0]) / (3 * tau)
    assert logratios - logratios.mean() == pytest.approx(expected - expected.mean(), abs=0.02)

"""Truths that are measured through the program, for the long tests and for the pictures.

Each function trains what it needs in a folder, and returns figures alone.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from jaxdpo import ScoreConfig, score
from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.runs.displacement import displacing_pairs_of_data
from jaxdpo.storage.files import shipped
from tests.folders import write_model, write_pairs
from tests.truth.bandit import answer_logps, train, write_comparisons
from tests.truth.tabular import kl_divergence, log_softmax
from tests.truth.test_overoptimisation import BEST, COURTEOUS, PLACES, SCORE

PROMPT = (7, 8, 9)
COUNTS = np.arange(PLACES + 1)


def answers_logps(model: Path | str, data: Path, split: str) -> np.ndarray:
    """log π of chosen and rejected answers of a file's pairs, f32 `[N, 2]`, by `jaxdpo.score`."""
    config = ScoreConfig.model_validate(
        {
            "model": str(model),
            "data": {"path": str(data), "split": split},
            "out": str(data.with_suffix(".scores.jsonl")),
            "overwrite": True,
        }
    )
    return score(config).logps


class Rejected(NamedTuple):
    """Mean log π of rejected TEST answers, nats: before training, and after each kind of it."""

    before: float
    supervised: float
    dpo: float


def rejected_answers(folder: Path) -> Rejected:
    """Trains a model that knows nothing yet on chosen answers, and by DPO on the same pairs."""
    model = write_model(folder / "model")
    data = write_pairs(folder / "pairs.jsonl", 300, test=60)
    settings = ("data.max_length=128", "optimizer.learning_rate=1e-3", "training.max_steps=40")
    found = [float(answers_logps(model, data, "TEST")[:, 1].mean())]
    for loss in ("sft", "sigmoid"):
        run = folder / loss
        trained = train(model, data, run, *settings, f"loss.type={loss}", "training.epochs=9")
        found.append(float(answers_logps(trained, data, "TEST")[:, 1].mean()))
    return Rejected(*found)


class Displaced(NamedTuple):
    """CHES scores of pairs before training, and how log π of their chosen answers then changed.

    Attributes:
      ches: f64 `[N]`.
      change: f64 `[N]`, nats a token.
      group: i64 `[N]`, which third of the scores a pair was trained with: 0 has the lowest.
    """

    ches: np.ndarray
    change: np.ndarray
    group: np.ndarray


def displaced_answers(folder: Path, of_group: int = 96) -> Displaced:
    """Trains three models on quickstart pairs of low, middle and high CHES scores (Razin et al.).

    Args:
      folder: Place of the runs.
      of_group: Pairs of each group.
    """
    model, pairs = shipped("@quickstart/model"), Path(shipped("@quickstart/pairs.jsonl"))
    lines = pairs.read_text(encoding="utf-8").splitlines()
    data = DataConfig(path=str(pairs), max_length=256, cache_dir=str(folder / "cache"))
    found = displacing_pairs_of_data(model, data, BatchConfig(), len(lines)).pairs
    # Lowest first; the ends and the middle of the order are the groups.
    ordered = [(int(each.source.rpartition(":")[2]) - 1, each.ches) for each in reversed(found)]
    middle = (len(ordered) - of_group) // 2
    ches, change = [], []
    for number, begin in enumerate((0, middle, len(ordered) - of_group)):
        part = ordered[begin : begin + of_group]
        path = folder / f"group_{number}.jsonl"
        records = [json.loads(lines[line]) | {"split": "TRAIN"} for line, _ in part]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        run = folder / f"run_{number}"
        settings = ("batch.size=32", "training.epochs=6", "loss.beta=0.1", "data.max_length=256")
        rows = ("batch.row_length=256", "batch.rows_per_device=4")
        rate = "optimizer.learning_rate=1e-4"
        trained = train(Path(model), path, run, *settings, *rows, rate)
        before, after = (answers_logps(each, path, "TRAIN")[:, 0] for each in (model, trained))
        tokens = np.array([len(record["messages"][-1]["content"].split()) for record in records])
        ches += [score for _, score in part]
        change += list((after - before) / tokens)
    group = np.repeat(np.arange(3), of_group)
    return Displaced(np.array(ches), np.array(change), group)


class Courteous(NamedTuple):
    """A policy over counts of courtesies: √KL from its reference in √nats, and both scores."""

    distance: float
    true: float
    proxy: float


def measure_courtesies(log_policy: np.ndarray, log_reference: np.ndarray) -> Courteous:
    """Measures a distribution over counts of courtesies, f64 `[11]`.

    Args:
      log_policy: log π of each count.
      log_reference: log ref of each count.
    """
    policy = np.exp(log_policy)
    distance = np.sqrt(max(kl_divergence(log_policy, log_reference), 0.0))
    return Courteous(
        distance, float(-policy @ (COUNTS - BEST) ** 2), float(SCORE * policy @ COUNTS)
    )


def courtesies_by_beta(
    folder: Path, betas: tuple[float, ...], compared: int = 4000
) -> list[Courteous]:
    """Trains on a proxy's noisy comparisons at each β; the first result is the supervised model.

    Answers are counts of courtesies, one token each. The proxy prefers more of them; the true score
    is best at three. See `test_overoptimisation`.

    Args:
      folder: Place of the runs.
      betas: Values of β.
      compared: Comparisons that are drawn from the supervised model's answers.
    """
    rng = np.random.default_rng(3)
    start, data = write_model(folder / "model"), folder / "supervised.jsonl"
    draws = rng.binomial(PLACES, COURTEOUS, 2000)
    # The rejected answer stands in the file alone: supervised training does not read it.
    sizes = write_comparisons(data, [(PROMPT, int(k), int(k + 1) % 11, 1.0) for k in draws])
    run, steps = folder / "supervised", "training.epochs=300"
    supervised = train(start, data, run, "loss.type=sft", steps, *sizes)
    log_reference = log_softmax(answer_logps(supervised, PROMPT, PLACES + 1))
    drawn = rng.choice(COUNTS, (compared, 2), p=np.exp(log_reference))
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    wins = rng.random(len(drawn)) < expit(SCORE * (drawn[:, 0] - drawn[:, 1]))
    ordered = np.where(wins[:, None], drawn, drawn[:, ::-1])
    pairs = folder / "proxy.jsonl"
    sizes = write_comparisons(pairs, [(PROMPT, int(a), int(b), 1.0) for a, b in ordered])
    found = [measure_courtesies(log_reference, log_reference)]
    for beta in betas:
        trained = train(
            supervised, pairs, folder / f"beta_{beta}", f"loss.beta={beta}", steps, *sizes
        )
        log_policy = log_softmax(answer_logps(trained, PROMPT, PLACES + 1))
        found.append(measure_courtesies(log_policy, log_reference))
    return found


def exact_courtesies(rate: float) -> Courteous:
    """The same of a binomial policy: the closed form that trained ones should lie on."""
    log_reference = binom.logpmf(COUNTS, PLACES, COURTEOUS)
    return measure_courtesies(binom.logpmf(COUNTS, PLACES, rate), log_reference)

"""DPO does what supervised training on the same chosen answers cannot: a quick case, by seed.

Answers have eight places that writers have wrong nine times in ten, so that no answer is right. The
whole way of a use case, with public names: `fit` from random weights, `make_pairs`, `fit` on the
pairs in two ways, `compare`. If DPO stops reducing failures, this fails.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases import pipeline
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.places import Place, judge_places, measure_places, write_places
from jaxdpo.use_cases.task import Domain, Written
from jaxdpo.use_cases.workshop import open_workshop

TESTS = 120
# For each place the right word and the wrong one.
WORDS = (
    ("price", "rooms"),
    ("stars", "floors"),
    ("seats", "doors"),
    ("beds", "desks"),
    ("bars", "pools"),
    ("lifts", "gates"),
    ("weight", "speed"),
    ("age", "size"),
)
ANSWERED = [Place((right,), wrong, f"({right}|{wrong})") for right, wrong in WORDS]


def write_question(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Asks about somebody; the writers say the wrong word in nearly every place."""
    return write_places(f"Ask {draw_name(split, rng)}.", ANSWERED, rng)


def score_answer(
    messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
) -> Judgement:
    """Judges an answer."""
    return judge_places(ANSWERED, completion)


def test_dpo_passes_where_the_chosen_answers_do_not(tmp_path: Path) -> None:
    """Failures after DPO against those of SFT on chosen answers (Tajwar et al. 2024, 2404.14367).

    In the table of `test_systematic` SFT on chosen ends at the rate of the chosen answers, and so
    hardly any of its answers is right; DPO's hardly has a place wrong. Here at the 99.9% bounds of
    120 answers to TEST prompts. Without the rejected answers, or with them exchanged, it fails.
    """
    case = replace(
        CASES["systematic_labels"],
        name="gap",
        write=write_question,
        criterion=f"{__name__}:score_answer",
        quality=lambda _, completion: measure_places(ANSWERED, completion),
        supervised_steps=80,
        width=64,
    )
    # The tests have eight devices: eight rows, which hold a step.
    short = ("data.max_length=96", "batch.row_length=128", "batch.rows_per_device=1")
    config = UseCasesConfig(
        folder=str(tmp_path),
        prompts=120,
        samples=4,
        tests=TESTS,
        sft=short,
        dpo=(*short, "batch.size=16", "training.max_steps=60", "training.evaluate_every=60"),
    )
    workshop = open_workshop(case, config, 11)
    models = {"SFT": pipeline.supervised_model(workshop)}
    pipeline.preference_pairs(workshop)
    for way in case.ways[:2]:
        models[way.label] = pipeline.train_on_pairs(workshop, way)
    prompts = workshop.prompts("in-domain", "TEST", "test", TESTS)
    measured = pipeline.compare_models(workshop, models, prompts, 1.0, tmp_path / "compared")
    failed = {name: sum(each.failed) for name, each in measured.items()}
    wrong = {name: 1 - each.quality["places right"] for name, each in measured.items()}

    # The writers' fault is learnt, place by place, and so are the chosen answers'.
    assert wrong["SFT"] == pytest.approx(0.9, abs=0.05)
    assert 0.55 < wrong["SFT on chosen"] < wrong["SFT"]
    # One-sided: at least 90% of those fail, and at most 40% after DPO, with a risk of 1 in 1,000.
    assert bound(failed["SFT on chosen"], "greater") > 0.9
    assert bound(failed["DPO"], "less") < 0.4
    assert measured["DPO"].quality["well formed"] > 0.9
    assert np.mean(measured["DPO"].failed) < np.mean(measured["SFT"].failed)


def bound(failures: int, side: str) -> float:
    """The one-sided 99.9% bound on the rate of failures: the lower one if it is said to be greater.

    Args:
      failures: Failures of `TESTS` answers.
      side: "greater" or "less", what is claimed of the rate.
    """
    interval = binomtest(failures, TESTS, alternative=side).proportion_ci(0.999)
    return interval.low if side == "greater" else interval.high

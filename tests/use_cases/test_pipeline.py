"""The pipeline on tasks that are learnt in seconds, and the report."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.evaluation.statistics import fewer_failures, pair_up
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases import pipeline, report, sweep
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written
from jaxdpo.use_cases.workshop import read_lines

Seed = tuple[UseCase, UseCasesConfig, Path, dict[str, Any]]


def even(messages: Any, completion: str, metadata: Any) -> Judgement:
    """Passes answers with an even number of letters: about half of a random model's."""
    passed = len(completion) % 2 == 0
    return Judgement(passed=passed, score=float(passed))


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_MAX_NEW_TOKENS", 6)
        yield


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    folder = tmp_path_factory.mktemp("use_cases")
    case = replace(
        CASES["word_limit"],
        criterion=f"{__name__}:even",
        quality=lambda *_: {"measured": 0.5},
        supervised_steps=2,
    )
    config = UseCasesConfig(
        folder=str(folder),
        prompts=50,
        samples=2,
        tests=50,
        sft=("batch.rows_per_device=1",),
        dpo=("training.max_steps=2", "batch.size=4", "batch.rows_per_device=1"),
    )
    result = pipeline.run_seed(case, config, 7)
    return case, config, folder / "word_limit" / "seed_7", result


def asked_in(path: Path) -> list[str]:
    return [line["messages"][0]["content"] for line in read_lines(path)]


def test_every_model_answers_the_same_prompts(seed: Seed) -> None:
    _, _, folder, result = seed
    models = {"SFT", "SFT on best", "DPO"}
    shown = {(one["domain"], one["temperature"], one["model"]) for one in result["measured"]}
    assert shown == {
        *(("in-domain", 1.0, model) for model in (*models, "best of 4")),
        *(("in-domain", 0.0, model) for model in models),
        *(("shifted", 1.0, model) for model in models),
    }
    prompts: dict[str, list[list[str]]] = {}
    for one in result["measured"]:
        where = folder / "evaluation" / f"{one['domain']}-{one['temperature']:g}"
        best = one["model"] == "best of 4"
        path = where / ("best_of.jsonl" if best else f"generations/{one['model']}.jsonl")
        prompts.setdefault(one["domain"], []).append(asked_in(path))
        assert one["failed"] == [len(line["completion"]) % 2 for line in read_lines(path)]
    for of_domain in prompts.values():
        assert all(asked == of_domain[0] for asked in of_domain)
        assert len(set(of_domain[0])) == 50
    # Choosing the best of four, the first among them, cannot be worse.
    firsts, best = (report.found(result, model)["failed"] for model in ("SFT", "best of 4"))
    assert all(after <= before for before, after in zip(firsts, best, strict=True))
    drawn = read_lines(folder / "evaluation" / "in-domain-1" / "best_of.samples.jsonl")
    compared = read_lines(folder / "evaluation" / "in-domain-1" / "generations" / "SFT.jsonl")
    assert [line["completion"] for line in drawn if line["sample"] == 0] == [
        line["completion"] for line in compared
    ]


def test_pairs_prefer_what_passes_and_no_prompt_of_test(seed: Seed) -> None:
    _, _, folder, result = seed
    pairs = read_lines(folder / "pairs" / "pairs.jsonl")
    assert len(pairs) == result["pairs"] > 0
    tested = set(asked_in(folder / "prompts" / "in-domain-test.jsonl"))
    for pair in pairs:
        prompt, chosen = (part["content"] for part in pair["messages"])
        assert len(chosen) % 2 == 0
        assert len(pair["rejected_message"]["content"]) % 2 == 1
        assert prompt not in tested


def test_a_finished_seed_is_read_again(seed: Seed) -> None:
    case, config, folder, result = seed
    changed = folder.stat().st_mtime_ns
    assert pipeline.run_seed(case, config, 7) == result
    assert folder.stat().st_mtime_ns == changed


def test_other_settings_are_refused(seed: Seed) -> None:
    case, config, _, _ = seed
    with pytest.raises(UserError, match=r"seed_7 was made with other settings: samples was 2"):
        pipeline.run_seed(case, config.model_copy(update={"samples": 4}), 7)


def test_a_sweep_measures_on_prompts_of_neither_test_nor_pairs(seed: Seed) -> None:
    case, config, folder, _ = seed
    config = config.model_copy(update={"seeds": (7,)})
    table = sweep.sweep_use_case(case, config, {"optimizer.learning_rate": [1e-12]})
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    names = ["SFT", "optimizer.learning_rate=1e-12"]
    assert [row[:2] for row in rows] == [["7", name] for name in names]
    # So low a rate changes nothing.
    assert rows[0][2:] == rows[1][2:]
    validated = [
        asked
        for domain in ("in-domain", "shifted")
        for name in names
        for asked in asked_in(
            folder / "sweep" / f"validation-{domain}" / name / "generations" / f"{name}.jsonl"
        )
    ]
    assert len(validated) == 4 * 50
    seen = [folder / "written.jsonl", folder / "pairs" / "pairs.jsonl"]
    seen += (folder / "evaluation").rglob("generations/*.jsonl")
    assert not set(validated) & {asked for path in seen for asked in asked_in(path)}


YES, NO = "Yes.", "No."


def write_reply(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Asks for something, which the writers refuse four times in ten."""
    return Written(f"May {draw_name(split, rng)} come in?", YES if rng.random() < 0.6 else NO)


def agrees(messages: Any, completion: str, metadata: Any) -> Judgement:
    """Passes the answer that agrees."""
    return Judgement(passed=completion == YES, score=float(completion == YES))


@pytest.mark.slow
def test_dpo_makes_a_models_answers_fail_less(tmp_path: Path) -> None:
    """The whole way with real learning: what is published of DPO must show on an easy task."""
    case = replace(
        CASES["word_limit"],
        write=write_reply,
        criterion=f"{__name__}:agrees",
        quality=lambda _, completion: {"well formed": float(completion in (YES, NO))},
        supervised_steps=60,
    )
    config = UseCasesConfig(
        folder=str(tmp_path),
        prompts=60,
        samples=4,
        tests=100,
        sft=("batch.rows_per_device=1", "batch.row_length=128"),
        dpo=(
            "training.max_steps=30",
            "batch.size=16",
            "batch.rows_per_device=1",
            "batch.row_length=128",
        ),
    )
    result = pipeline.run_seed(case, config, 3)
    sft, dpo = (report.found(result, model) for model in ("SFT", "DPO"))
    # The writers' fault is learnt: 40%, less or more by three standard errors of 100 answers.
    assert 0.25 < np.mean(sft["failed"]) < 0.55
    # At least half of the failures go, at the lower end of the 95% interval; and not by answers of
    # another kind.
    passed = [[not failed for failed in each["failed"]] for each in (sft, dpo)]
    assert fewer_failures(pair_up(*passed)).low > 0.5
    assert dpo["quality"]["well formed"] >= 0.95
    # More than the same run on the chosen answers alone brings: the loss itself is at work.
    assert np.mean(dpo["failed"]) <= np.mean(report.found(result, "SFT on best")["failed"])


def test_quick_size() -> None:
    quick = UseCasesConfig(size="quick", tests=70)
    assert (quick.seeds, quick.prompts, quick.tests) == ((0,), 1000, 70)


def test_table_and_chart(seed: Seed) -> None:
    case, _, folder, result = seed
    tables = report.write_report(folder, {"word_limit": case}, {"word_limit": [result]})
    failures, others = (
        dict(zip(*(line.strip("| ").split(" | ") for line in table.splitlines()[::2]), strict=True))
        for table in tables.strip().split("\n\n")
    )
    failed = {model: report.found(result, model)["failed"] for model in ("SFT", "DPO")}
    assert failures["DPO"] == f"{100 * np.mean(failed['DPO']):.1f}%"
    fewer = 1 - sum(failed["DPO"]) / sum(failed["SFT"])
    assert failures["fewer (95%)"].startswith(f"{100 * fewer:.0f}% (")
    assert failures["published"] == "31 → 7%: 77%"
    assert others["quality"] == "measured 50.0 → 50.0%"
    assert (folder / "results.png").stat().st_size > 1000
    assert tables in (folder / "results.md").read_text()

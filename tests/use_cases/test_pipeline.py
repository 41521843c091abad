"""The pipeline on a task that needs no learning, and the report."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.use_cases import pipeline, report, sweep
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.config import UseCasesConfig


def short(example):
    """Of a model with random weights about half of the answers have an even number of letters."""
    even = len(example.completion) % 2 == 0
    return Judgement(passed=even, score=float(even))


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_MAX_NEW_TOKENS", 6)
        yield


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("use_cases")
    case = replace(
        CASES["word_limit"],
        judge=short,
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


def test_every_model_answers_the_same_prompts(seed):
    _, _, folder, result = seed
    models = {"SFT", "SFT on best", "DPO"}
    shown = {(one["domain"], one["temperature"], one["model"]) for one in result["measured"]}
    assert shown == {
        *(("home", 1.0, model) for model in (*models, "best of 4")),
        *(("home", 0.0, model) for model in models),
        *(("away", 1.0, model) for model in models),
    }
    prompts = {}
    for path in (folder / "answers").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        asked = [line["messages"][0]["content"] for line in lines]
        assert len(set(asked)) == 50
        prompts.setdefault(path.name.split("-")[0], []).append(asked)
        said = path.stem.split("-")[2].replace("_", " ")
        of_file = report.found(
            result, said, path.name.split("-")[0], float(path.name.split("-")[1])
        )
        assert of_file["failed"] == [int(len(line["completion"]) % 2) for line in lines]
    for of_domain in prompts.values():
        assert all(asked == of_domain[0] for asked in of_domain)
    # Choosing the best of four, the first among them, cannot be worse.
    firsts, best = (report.found(result, model)["failed"] for model in ("SFT", "best of 4"))
    assert all(after <= before for before, after in zip(firsts, best, strict=True))


def test_pairs_prefer_what_passes_and_no_prompt_of_test(seed):
    case, config, folder, result = seed
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == result["pairs"] > 0
    tested = set(pipeline.take(case, "home", "TEST", "7 test", config.tests))
    for pair in pairs:
        prompt, chosen = (part["content"] for part in pair["messages"])
        assert len(chosen) % 2 == 0
        assert len(pair["rejected_message"]["content"]) % 2 == 1
        assert prompt not in tested


def test_a_finished_seed_is_read_again(seed):
    case, config, folder, result = seed
    changed = folder.stat().st_mtime_ns
    assert pipeline.run_seed(case, config, 7) == result
    assert folder.stat().st_mtime_ns == changed


def test_other_settings_are_refused(seed):
    case, config, _, _ = seed
    with pytest.raises(UserError, match=r"seed_7 was made with other settings: samples was 2"):
        pipeline.run_seed(case, config.model_copy(update={"samples": 4}), 7)


def test_a_sweep_measures_on_prompts_of_neither_test_nor_pairs(seed, monkeypatch):
    case, config, folder, _ = seed
    asked = []

    def answer_all(*arguments):
        asked.extend(arguments[2])
        return pipeline.answer_all(*arguments)

    monkeypatch.setattr(sweep, "answer_all", answer_all)
    config = config.model_copy(update={"seeds": (7,)})
    table = sweep.sweep_use_case(case, config, {"optimizer.learning_rate": [1e-12]})
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    names = ["SFT", "optimizer.learning_rate=1e-12"]
    assert [row[:2] for row in rows] == [["7", name] for name in names]
    # So low a rate changes nothing.
    assert rows[0][2:] == rows[1][2:]
    seen = [folder / "written.jsonl", folder / "pairs.jsonl", *(folder / "answers").iterdir()]
    lines = (line for path in seen for line in path.read_text().splitlines())
    assert not set(asked) & {json.loads(line)["messages"][0]["content"] for line in lines}


def test_quick_size():
    quick = UseCasesConfig(size="quick", tests=70)
    assert (quick.seeds, quick.prompts, quick.tests) == ((0,), 1000, 70)


def test_table_and_chart(seed):
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

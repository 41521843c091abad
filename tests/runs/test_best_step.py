"""The best step on TEST is kept, found again after a cut, and exported; a collapsed run ends."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.losses import LossConfig
from jaxdpo.runs.fit import fit
from jaxdpo.runs.held_out import accuracy_interval
from jaxdpo.sampling import answer
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores
from jaxdpo.training.best_step import BestStep, metric_of
from jaxdpo.training.held_out import metric_intervals, preference_metrics
from tests.folders import write_model, write_pairs

CRITERIA = "training.watch.criteria=[{name: word_limit, limit: from_prompt}]"


def quickstart(tmp_path, *overrides: str):
    folder, cache = f"training.folder={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"
    settings = [folder, cache, "training.completions=0", *overrides]
    return load_config("configs/quickstart.yaml", settings)


def evaluations(result) -> list[dict]:
    return [record for record in result.history if record["split"] == "TEST"]


def test_a_collapsing_run_ends_and_exports_a_step_as_good_as_the_base(
    tmp_path,
):
    config = quickstart(
        tmp_path,
        "optimizer.learning_rate=5e-3",
        "training.max_steps=16",
        "training.evaluate_every=4",
        "checkpoint.best=word_limit",
        "training.stop.broken=0.5",
        CRITERIA,
    )
    result = fit(config)
    exported, tested = result.summary["exported"], evaluations(result)
    assert "of the answers to TEST prompts are broken" in exported["stopped"]
    assert tested[-1]["step"] < 16
    by_step = {record["step"]: record["answers/pass_rate/word_limit"] for record in tested}
    assert by_step[exported["step"]] >= by_step[0]
    answers = [json.loads(line) for line in (tmp_path / "run/answers.jsonl").open()]
    assert {each["step"] for each in answers} == set(by_step)
    # The prompts are the data's messages, not the rendered text.
    assert all("<|" not in each["messages"][-1]["content"] for each in answers)


@pytest.mark.slow
def test_a_rate_beyond_all_measure_ends_the_run_and_leaves_the_model_that_it_began_with(tmp_path):
    config = quickstart(
        tmp_path,
        "optimizer.learning_rate=1e6",
        "training.max_steps=4",
        "training.evaluate_every=1",
        "training.watch.prompts=4",
        "checkpoint.best=loss",
        "training.stop={broken: 0.5, worse: 2}",
    )
    result = fit(config)
    exported = result.summary["exported"]
    assert exported["stopped"] and exported["step"] == 0
    assert evaluations(result)[-1]["step"] < 4
    answers = [json.loads(line) for line in (tmp_path / "run/answers.jsonl").open()]
    base = {each["completion"] for each in answers if each["step"] == 0}
    asked = [each["messages"] for each in answers if each["step"] == 0]
    assert {*answer(load_policy(str(result.folder / "model")), asked)} == base


@pytest.mark.slow
def test_a_healthy_run_never_stops(tmp_path):
    config = quickstart(
        tmp_path,
        "training.max_steps=12",
        "training.evaluate_every=4",
        "checkpoint.best=loss",
        "training.stop={broken: 0.3, worse: 3}",
        "export.step=best",
    )
    result = fit(config)
    assert result.summary["exported"]["stopped"] is None
    tested = evaluations(result)
    assert [record["step"] for record in tested] == [0, 4, 8, 12]
    best = min(tested, key=lambda record: record["loss"])
    assert result.summary["exported"]["step"] == best["step"]


def overfitting(tmp_path, name: str, *overrides: str):
    """Labels are random for the tiny model, so that TEST gets worse as it learns TRAIN by heart."""
    model, pairs = tmp_path / "model", tmp_path / "pairs.jsonl"
    if not model.exists():
        write_model(model)
        write_pairs(pairs, 24, test=8)
        lines = [json.loads(line) for line in pairs.open()]
        for line in lines[:8]:
            # TEST asks for the opposite of TRAIN: every step makes it worse.
            line["messages"][-1], line["rejected_message"] = (
                line["rejected_message"],
                line["messages"][-1],
            )
        pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_config(
        None,
        [
            f"model.path={model}",
            f"data.path={pairs}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"training.folder={tmp_path / name}",
            "training.epochs=4",
            "training.evaluate_every=2",
            "training.completions=0",
            "training.watch.prompts=0",
            "batch.size=8",
            "batch.row_length=128",
            "optimizer.learning_rate=1e-3",
            "checkpoint.best=loss",
            *overrides,
        ],
    )


def test_the_best_step_is_exported_though_later_ones_are_worse(tmp_path):
    best = fit(overfitting(tmp_path, "best", "export.step=best"))
    last = fit(overfitting(tmp_path, "last"))
    tested = evaluations(best)
    assert tested[-1]["loss"] > tested[0]["loss"]
    assert best.summary["exported"]["step"] == 0
    assert last.summary["exported"]["step"] == tested[-1]["step"]
    assert best.summary["test"]["after"] == tested[0]
    # Step 0 is the model before training, to the bit.
    before = load_file(tmp_path / "model/model.safetensors")
    after = load_file(tmp_path / "best/model/model.safetensors")
    assert all(np.array_equal(after[name], before[name]) for name in after)
    trained = load_file(tmp_path / "last/model/model.safetensors")
    assert any(not np.array_equal(trained[name], before[name]) for name in trained)


def test_a_run_ends_after_evaluations_that_are_no_better(tmp_path):
    result = fit(overfitting(tmp_path, "worse", "training.stop.worse=2"))
    assert [record["step"] for record in evaluations(result)] == [0, 2, 4]
    said = result.summary["exported"]["stopped"]
    assert said == "loss on TEST has not improved in 2 evaluations since step 0"


def test_a_run_that_was_cut_off_finds_its_best_step_again(tmp_path, monkeypatch):
    whole = fit(overfitting(tmp_path, "whole", "export.step=best"))
    config = overfitting(tmp_path, "cut", "export.step=best", "checkpoint.every=2")
    calls = []

    def cut_off(self, step, state):
        if step == 6 and not calls:
            calls.append(step)
            raise KeyboardInterrupt
        return save(self, step, state)

    from jaxdpo.training.checkpoint import Checkpoints

    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    again = fit(config)
    assert calls == [6]
    assert again.summary["exported"] == whole.summary["exported"]
    kept = [record["loss"] for record in evaluations(again)]
    assert kept == [record["loss"] for record in evaluations(whole)]


def test_a_damaged_best_step_is_not_exported(tmp_path, monkeypatch):
    from jaxdpo.training.checkpoint import Checkpoints

    save = Checkpoints.save_best

    def damaged(self, step, trainable):
        save(self, step, trainable)
        for file in (tmp_path / "run/checkpoints").glob("best_*/state/**/d/*"):
            file.write_bytes(b"\0" + file.read_bytes()[1:])

    monkeypatch.setattr(Checkpoints, "save_best", damaged)
    with pytest.raises(UserError, match=r"best_00000000: the best step is missing or damaged"):
        fit(overfitting(tmp_path, "run", "export.step=best"))


def test_ties_keep_the_earlier_step_and_what_is_not_a_number_is_never_best():
    best = BestStep("accuracy", metric_of("accuracy"))
    taken = [
        best.take(step, {"rewards/accuracies": value})
        for step, value in enumerate([float("nan"), 0.5, 0.5, float("nan"), 0.75, 0.5])
    ]
    assert taken == [False, True, False, False, True, False]
    assert (best.step, best.value, best.since) == (4, 0.75, 1)


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    logps = rng.normal(-20, 5, (40, 2)).astype(np.float32)
    reference = rng.normal(-20, 5, (40, 2)).astype(np.float32)
    tokens = np.full((40, 2), 10.0, np.float32)
    config = LossConfig(beta=0.1)
    scores = CompletionScores(logps, logps, tokens, None, None, None)
    found = metric_intervals(config, scores, PairColumns(reference=reference))
    rewards = 0.1 * (logps - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    per_pair = {
        "loss": np.log1p(np.exp(-margins)),
        "rewards/margins": margins,
    }
    for name, values in per_pair.items():
        low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), rel=1e-4)
    means = preference_metrics(config, scores, PairColumns(reference=reference))
    assert found["loss_low"] < means["loss"] < found["loss_high"]
    found = accuracy_interval(means)
    low, high = proportion_confint(int((margins > 0).sum()), len(margins), method="wilson")
    name = "rewards/accuracies"
    assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), rel=1e-6)
    # All of 20 pairs told right are no certainty, and none are more than all: 20 / (20 + z²) to 1.
    all_right = accuracy_interval({name: 1.0, "num_pairs": 20.0})
    assert list(all_right.values()) == pytest.approx([20 / (20 + 1.959964**2), 1.0], rel=1e-6)

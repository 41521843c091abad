"""Warnings of real runs: those that are made to fail say so, a healthy one says nothing."""

import json
import random
import re

import pytest

from jaxdpo.config import load_config
from jaxdpo.runs.fit import fit
from tests.folders import write_model

WORDS = ("red", "blue", "small", "large")


def write_lines(path, count, flipped, longer):
    """Answers from eight sentences; a share of preferences is flipped, the chosen may be longer."""
    rng = random.Random(3)
    lines = []
    for index in range(count):
        word = rng.choice(WORDS)
        chosen = f"yes the {word} cat" + " and the dog" * (rng.randint(0, 6) if longer else 0)
        answers = [chosen, f"no the {word} cat"]
        if rng.random() < flipped:
            answers.reverse()
        lines.append(
            {
                "messages": [
                    {"role": "user", "content": f"what is {word}"},
                    {"role": "assistant", "content": answers[0]},
                ],
                "rejected_message": {"role": "assistant", "content": answers[1]},
                "split": "TEST" if index < 30 else "TRAIN",
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_model(folder / "untrained")
    noisy = write_lines(folder / "noisy.jsonl", 150, flipped=0.4, longer=False)
    trivial = write_lines(folder / "trivial.jsonl", 150, flipped=0.0, longer=True)

    def start(name, *overrides):
        base = [
            f"data.cache_dir={folder / 'cache'}",
            f"training.folder={folder / name}",
            "training.epochs=99",
            "training.completions=0",
            "batch.size=8",
            "mesh.fsdp=8",
            "mesh.data=1",
        ]
        return fit(load_config(None, [*base, *overrides]))

    start(
        "sft",
        f"model.path={folder / 'untrained'}",
        f"data.path={noisy}",
        "loss.type=sft",
        "training.max_steps=60",
        "optimizer.learning_rate=1e-2",
    )
    return start, folder / "sft" / "model", folder / "untrained", noisy, trivial


def test_a_healthy_run_says_nothing(run, capsys):
    start, model, _, noisy, _ = run
    start(
        "healthy",
        f"model.path={model}",
        f"data.path={noisy}",
        "training.max_steps=40",
        "optimizer.learning_rate=3e-4",
        "optimizer.max_grad_norm=5.0",
    )
    # (That prompts stand in both splits is said of the data, not of the run.)
    assert "warning (" not in capsys.readouterr().out


def test_a_run_that_fails_in_every_way_says_so(run, capsys):
    start, _, untrained, _, trivial = run
    start(
        "failing",
        f"model.path={untrained}",
        f"data.path={trivial}",
        "training.max_steps=80",
        "optimizer.learning_rate=3e-2",
        "optimizer.schedule=constant",
        "loss.beta=0.5",
    )
    said = capsys.readouterr().out
    for words in (
        "hardly ever says such answers",
        "told apart at sight",
        "the policy still runs away",
        "gone far from its reference",
        "rewarded for their length",
    ):
        assert said.count(words) == 1, words


@pytest.mark.slow
def test_a_run_that_learns_its_pairs_by_heart_or_displaces_says_so(run, capsys):
    start, model, _, noisy, _ = run
    start(
        "by heart",
        f"model.path={model}",
        f"data.path={noisy}",
        "training.max_steps=160",
        "optimizer.learning_rate=3e-3",
        "optimizer.schedule=constant",
        "optimizer.max_grad_norm=0.01",
        "loss.beta=0.3",
    )
    said = capsys.readouterr().out
    assert said.count("so the limit sets the step's size") == 1
    assert said.count("learns its pairs by heart") == 1
    assert said.count("likelihood displacement") == 1
    named = re.findall(r"the likeliest causes, .*?: (.*)", " ".join(said.split()))
    assert len(named) == 1 and len(re.findall(r"noisy\.jsonl:\d+ \(-?\d", named[0])) == 5

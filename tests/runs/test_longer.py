"""A finished run goes on for more epochs, as if it had been begun with them if rates allow."""

import json
import re
import shutil
from pathlib import Path

import pytest

from jaxdpo.errors import UserError
from jaxdpo.runs.fit import fit
from jaxdpo.training.checkpoint import Checkpoints
from tests.run_configs import run_config, write_inputs

# 24 TRAIN pairs: three steps an epoch.
SETTINGS = (
    "batch.row_length=128",
    "training.evaluate_every=3",
    "training.watch.prompts=0",
    "checkpoint.every=2",
)
CONSTANT = "optimizer.schedule=constant"
WEIGHTS = Path("model") / "model.safetensors"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("longer"))


def train(inputs: Path, name: str, *overrides: str):
    return fit(run_config(inputs, inputs / name, *SETTINGS, *overrides))


def losses(run: Path) -> list[tuple[int, str, float]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["split"], record["loss"]) for record in records]


ANSWERED = "training.completions=1"


@pytest.fixture(scope="module")
def whole(inputs):
    """Three epochs in one go."""
    return train(inputs, "whole", CONSTANT, ANSWERED, "training.epochs=3")


@pytest.fixture(scope="module")
def finished(inputs):
    """A copy under a name of its own of a finished run of one epoch."""
    assert train(inputs, "one", CONSTANT, ANSWERED).summary["steps"] == 3

    def copied(name: str) -> Path:
        shutil.copytree(inputs / "one", inputs / name)
        return inputs / name

    return copied


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("config.json", "rms_norm_eps", 0.1, "config.json (model.path)"),
        ("generation_config.json", "eos_token_id", [0, 1], "generation_config.json (model.path)"),
        ("tokenizer_config.json", "model_max_length", 77, "tokenizer and chat template"),
    ],
)
def test_a_model_folder_that_was_edited_is_refused(inputs, finished, file, key, value, said):
    """Weights and pairs are the same, but another arithmetic or other tokens would be trained."""
    finished(f"edited {file}")
    edited = inputs / "model" / file
    before = edited.read_text() if edited.exists() else None
    edited.write_text(json.dumps({**json.loads(before or "{}"), key: value}))
    try:
        with pytest.raises(UserError, match=re.escape(said)):
            train(inputs, f"edited {file}", CONSTANT, ANSWERED, "training.epochs=2")
    finally:
        if before is None:
            edited.unlink()
        else:
            edited.write_text(before)


def test_more_epochs_end_as_if_they_had_been_asked_for_at_first(inputs, whole, finished, capsys):
    one_epoch = (finished("grown") / WEIGHTS).read_bytes()
    grown = train(inputs, "grown", CONSTANT, ANSWERED, "training.epochs=3")
    said = capsys.readouterr().out.replace("\n", " ")
    assert "a run of 3 steps goes on to 9: from step 4 the learning rate is that of the" in said
    assert (grown.folder / WEIGHTS).read_bytes() == (whole.folder / WEIGHTS).read_bytes()
    assert (grown.folder / WEIGHTS).read_bytes() != one_epoch
    assert losses(grown.folder) == losses(whole.folder)
    # All that is of the run's end is of its new end.
    for name in ("steps", "exported", "test", "completions"):
        assert grown.summary[name] == whole.summary[name]
    assert json.loads((grown.folder / "summary.json").read_text())["steps"] == 9
    answers = (grown.folder / "completions_after.json").read_text()
    assert answers == (whole.folder / "completions_after.json").read_text()
    assert "9 optimizer steps" in (grown.folder / "model" / "README.md").read_text()
    assert "epochs: 3" in (grown.folder / "config.yaml").read_text()


def test_killed_while_it_goes_on_it_ends_the_same(inputs, whole, finished, monkeypatch):
    run = finished("killed")
    save, killed = Checkpoints.save, []

    def kill(self, step, state):
        if step == 8 and not killed:
            killed.append(step)
            raise KeyboardInterrupt
        return save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        train(inputs, "killed", CONSTANT, "training.epochs=3")
    # The folder is no finished run's, and its model is still the one of the first epoch.
    assert not (run / "summary.json").exists() and (run / WEIGHTS).exists()
    with pytest.raises(UserError, match=r"of 9 steps .*asked for 3; a run can be made longer, not"):
        train(inputs, "killed", CONSTANT)
    assert "epochs: 3" in (run / "config.yaml").read_text()
    train(inputs, "killed", CONSTANT, "training.epochs=3")
    assert killed == [8]
    assert (run / WEIGHTS).read_bytes() == (whole.folder / WEIGHTS).read_bytes()


def test_a_falling_rate_is_stretched_and_that_is_said(inputs, capsys):
    train(inputs, "linear")
    capsys.readouterr()
    result = train(inputs, "linear", "training.epochs=2")
    said = capsys.readouterr().out.replace("\n", " ")
    # Linear from 1e-3 to 0 over six steps: half of it after three.
    assert "linear schedule over all 6 steps, 0.0005 there (over 3 steps it ended at 0)" in said
    assert [record["step"] for record in result.history if record["split"] == "TRAIN"] == [
        *range(1, 7)
    ]


def test_what_a_longer_run_was_refused_for_leaves_the_finished_one(inputs, finished):
    run = finished("kept")
    summary = (run / "summary.json").read_bytes()
    pairs = inputs / "other.jsonl"
    shutil.copy(inputs / "pairs.jsonl", pairs)
    pairs.write_text(pairs.read_text().replace("yes", "sure"))
    with pytest.raises(UserError, match="started from other inputs"):
        train(inputs, "kept", CONSTANT, "training.epochs=2", f"data.path={pairs}")
    with pytest.raises(UserError, match=r"holds a run of 3 steps .*is asked for 1"):
        train(inputs, "kept", CONSTANT, "training.max_steps=1")
    with pytest.raises(UserError, match=r"optimizer.schedule was 'constant', is now 'linear'"):
        train(inputs, "kept", "training.epochs=2")
    assert (run / "summary.json").read_bytes() == summary
    assert train(inputs, "kept", CONSTANT).summary == json.loads(summary)
    anew = train(inputs, "kept", CONSTANT, "training.max_steps=1", "training.overwrite=true")
    assert anew.summary["steps"] == 1

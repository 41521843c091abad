"""A sweep: the runs it stands for, on one load of model, data and reference."""

import json

import pytest

from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.run import fit
from jaxdpo.sweep import name_of, parse_axes, settings_of, sweep
from tests.folders import write_model, write_pairs


def test_axes_and_settings_by_hand():
    axes = parse_axes(["loss.beta=0.1,0.3", "lora.targets=[q,v],[q]"])
    assert axes == {"loss.beta": [0.1, 0.3], "lora.targets": [["q", "v"], ["q"]]}
    settings = settings_of(axes)
    assert [setting["loss.beta"] for setting in settings] == [0.1, 0.1, 0.3, 0.3]
    assert name_of(settings[1]) == "loss.beta=0.1,lora.targets=[q]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"--sweep needs at least one section.field=value,value"),
        (["loss.beta"], r"after --sweep, write section.field=value,value"),
        (["loss.beta=0.1", "loss.beta=0.2"], r"names loss.beta twice"),
        (["model.path=a,b"], r"--sweep model.path: the settings of a sweep share"),
        (["training.folder=a,b"], r"--sweep training.folder: the settings of a sweep share"),
        (["loss.beta=[1"], r"the values are not valid YAML"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_axes(arguments)


def test_a_sweep_is_the_runs_it_stands_for(tmp_path):
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 20, test=4)
    base = [
        f"model.path={tmp_path / 'model'}",
        f"data.path={tmp_path / 'pairs.jsonl'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"training.folder={tmp_path / 'sweep'}",
        "training.max_steps=2",
        "training.completions=0",
        "training.evaluate_every=2",
        "batch.size=8",
        "optimizer.learning_rate=1e-3",
        "mesh.data=1",
        "mesh.fsdp=8",
    ]
    with pytest.raises(UserError, match=r"loss.beta: Input should be greater than 0"):
        sweep(base, {"loss.beta": [0.1, -1.0]})
    assert not (tmp_path / "sweep").exists(), "every setting is checked before the first runs"
    rows = sweep(base, {"loss.beta": [0.1, 0.3]})
    assert [row["setting"] for row in rows] == [{"loss.beta": 0.1}, {"loss.beta": 0.3}]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == rows
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000
    # Two splits, scored once for both runs.
    assert len(list((tmp_path / "cache" / "reference").glob("*.npy"))) == 2
    alone = load_config(None, [*base, "loss.beta=0.3", f"training.folder={tmp_path / 'alone'}"])
    assert fit(alone).summary["test"]["after"] == rows[1]["after"]
    # Run again, nothing is trained: the finished settings are read.
    assert sweep(base, {"loss.beta": [0.1, 0.3]}) == rows

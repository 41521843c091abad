"""A sweep: the runs it stands for, on one load of model, data and reference."""

import json
import shutil

import numpy as np
import pytest

from jaxdpo.cli.settings import with_overrides
from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.runs.fit import fit
from jaxdpo.runs.sweep import groups_of, name_of, parse_at_once, parse_axes, settings_of, sweep
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
    settings = [
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
    base = load_config(None, settings)
    with pytest.raises(UserError, match=r"loss.beta: Input should be greater than 0"):
        sweep(base, {"loss.beta": [0.1, -1.0]})
    assert not (tmp_path / "sweep").exists(), "every setting is checked before the first runs"
    rows = sweep(base, {"loss.beta": [0.1, 0.3]})
    assert [row["setting"] for row in rows] == [{"loss.beta": 0.1}, {"loss.beta": 0.3}]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == rows
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000
    # Two splits, scored once for both runs.
    assert len(list((tmp_path / "cache" / "reference").glob("*.npy"))) == 2
    alone = load_config(None, [*settings, "loss.beta=0.3", f"training.folder={tmp_path / 'alone'}"])
    assert fit(alone).summary["test"]["after"] == rows[1]["after"]
    # Run again, nothing is trained: the finished settings are read.
    assert sweep(base, {"loss.beta": [0.1, 0.3]}) == rows


REQUIRED = ["model.path=m", "data.path=d.jsonl"]


def grouped(*each, at_once=None):
    configs = [
        load_config(None, [*REQUIRED, f"training.folder=runs/{number}", *overrides])
        for number, overrides in enumerate(each)
    ]
    return groups_of(configs, at_once)


def test_what_is_trained_at_once():
    lora, beta, rate = ["lora.rank=4"], ["loss.beta=0.3"], ["optimizer.learning_rate=1e-4"]
    assert grouped(lora, [*lora, *beta], [*lora, "loss.beta=0.5"]) == [[0, 1, 2]]
    assert grouped(lora, [*lora, *beta], lora, at_once=2) == [[0, 1], [2]]
    # All parameters, other shapes, another order of the pairs, another formula.
    assert grouped([], beta) == [[0], [1]]
    assert grouped(lora, ["lora.rank=8"], [*lora, "training.seed=1"]) == [[0], [1], [2]]
    assert grouped(lora, [*lora, "loss.type=ipo"], [*lora, *beta]) == [[0, 2], [1]]
    # A default is not a number yet.
    assert grouped(lora, [*lora, *rate], [*lora, *rate, *beta]) == [[0], [1, 2]]


def test_at_once_is_taken_out_of_the_axes():
    assert parse_at_once(["loss.beta=0.1,0.2", "at_once=3"]) == (3, ["loss.beta=0.1,0.2"])
    with pytest.raises(UserError, match=r"write at_once=N"):
        parse_at_once(["at_once=two"])


def records(folder, split):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    names = ("loss", "rewards/margins", "logps/chosen", "grad_norm", "learning_rate")
    found = [json.loads(line) for line in lines]
    return [[r[n] for n in names if n in r] for r in found if r["split"] == split]


@pytest.mark.slow
def test_adapters_trained_at_once_are_the_runs_they_stand_for(tmp_path):
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 28, test=4)

    def base(name):
        settings = [
            f"model.path={tmp_path / 'model'}",
            f"data.path={tmp_path / 'pairs.jsonl'}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"training.folder={tmp_path / name}",
            "training.max_steps=3",
            "training.completions=1",
            "training.evaluate_every=2",
            "checkpoint.every=2",
            "batch.size=8",
            "lora.rank=4",
            "lora.dropout=0.1",
            "mesh.data=1",
            "mesh.fsdp=2",
            "mesh.tensor=4",
        ]
        return load_config(None, settings)

    axes = {"loss.beta": [0.1, 0.3], "optimizer.learning_rate": [1e-3, 1e-2]}
    rows = sweep(base("at once"), axes)
    # Two that differ in both numbers, each started alone.
    for row in (rows[0], rows[3]):
        name = name_of(row["setting"])
        fit(with_overrides(base(f"apart/{name}"), [f"{k}={v}" for k, v in row["setting"].items()]))
        for split, count in (("TRAIN", 3), ("TEST", 3)):
            ours, theirs = (records(tmp_path / run / name, split) for run in ("at once", "apart"))
            assert len(ours) == count
            # The same sums in another order: rounding, which Adam's division makes larger.
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)
    assert len(list((tmp_path / "cache" / "reference").glob("*.npy"))) == 2
    for row in rows:
        folder = tmp_path / "at once" / name_of(row["setting"])
        assert (folder / "model" / "model.safetensors").stat().st_size
    margins = [row["after"]["rewards/margins"] for row in rows]
    assert len(set(margins)) == 4 and margins[3] > margins[0]
    # Cut off after step 2, they continue together and end as they ended.
    for row in rows:
        folder = tmp_path / "at once" / name_of(row["setting"])
        shutil.rmtree(folder / "checkpoints" / "step_00000003")
        (folder / "summary.json").unlink()
    for again, row in zip(sweep(base("at once"), axes), rows, strict=True):
        assert again["after"] == row["after"]
    # One of them continues alone.
    folder = tmp_path / "at once" / name_of(rows[2]["setting"])
    shutil.rmtree(folder / "checkpoints" / "step_00000003")
    (folder / "summary.json").unlink()
    alone = sweep(base("at once"), axes)[2]
    np.testing.assert_allclose(
        alone["after"]["loss"], rows[2]["after"]["loss"], rtol=2e-3, atol=1e-4
    )

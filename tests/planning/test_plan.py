"""`python -m jaxdpo.plan`: from a model's shape to a verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxdpo.plan as plan
from jaxdpo.devices.machine import Machine
from jaxdpo.errors import UserError
from jaxdpo.planning import chips, plan_run
from jaxdpo.planning.aot import Compiled, collectives_in
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.planning.plan import Plan
from tests.folders import write_model, write_pairs

SHAPE = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    """A folder that holds a config.json and nothing else."""
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape/config.json").write_text(json.dumps(SHAPE))
    return tmp_path / "shape"


def test_the_machine_at_hand_is_measured(shape, capsys):
    small = ["pairs=200", "prompt=20", "completion=30", "batch.size=16", "data.max_length=128"]
    following = plan.main([f"model.path={shape}", *small])
    rest = "data=PAIRS.jsonl training.folder=runs/first"
    assert following == (
        f"jaxdpo train model.path={shape} batch.size=16 data.max_length=128 {rest}"
    )
    shown = capsys.readouterr().out
    assert "20 and 30 tokens in the median" in shown
    for part in ("optimizer", "activations kept", "peak", "seconds a step, timed", "13 steps"):
        assert part in shown
    assert "fits: a step holds" in shown


def test_lengths_are_those_of_the_data_and_no_weights_are_read(tmp_path, capsys):
    write_model(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    write_pairs(tmp_path / "pairs.jsonl", 22, test=2)
    where = [f"model.path={tmp_path}/model", f"data.path={tmp_path}/pairs.jsonl"]
    plan.main([*where, f"data.cache_dir={tmp_path}/cache", "batch.size=10", "training.epochs=2"])
    shown = capsys.readouterr().out
    assert "assumed" not in shown
    assert "hours for 20 pairs, 4 steps" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["topolgy=v5e:4x4"], "topolgy: unknown key; did you mean 'topology'?"),
        (["prompt=10"], "prompt is read with pairs="),
        (["pairs=0"], "pairs: Input should be greater than or equal to 1"),
        (["pairs=9", "data.path=x"], "pairs=… stands in place of data.path"),
        (["pairs=9", "topology=v5e"], "the shape in chips is missing"),
        (["pairs=9", "topology=v5litepod:4x4"], "topology=v5litepod:4x4: unknown kind"),
        (["pairs=9", "topology=v5p:4x4"], "a shape of v5p has 3 numbers"),
        (["pairs=9", "topology=h100:16"], "a host has up to 8 GPUs; write h100:2x8"),
        (["pairs=9", "loss.bta=1"], "loss.bta: unknown key; did you mean 'beta'"),
    ],
)
def test_mistakes_are_named(shape, monkeypatch, arguments, message):
    monkeypatch.setattr(plan_run, "keep_to_cpu", lambda: None)
    monkeypatch.setattr(chips, "find_spec", lambda name: "there")
    with pytest.raises(UserError) as refused:
        plan.main([f"model.path={shape}", *arguments])
    assert message in str(refused.value)


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4x4", "tpu"), ("h100:8", "plan-gpu")])
def test_a_missing_compiler_says_what_to_install(shape, monkeypatch, topology, extra):
    monkeypatch.setattr(plan_run, "keep_to_cpu", lambda: None)
    monkeypatch.setattr(chips, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'jaxdpo\[{extra}\]'"):
        plan.main([f"model.path={shape}", "pairs=99", f"topology={topology}"])


def test_assumed_lengths_have_their_medians_and_fit():
    uncut = assumed_lengths(4000, 120, 290, 10**6)
    np.testing.assert_allclose(np.median(uncut, axis=0), [120, 290, 290], rtol=0.05)
    lengths = assumed_lengths(4000, 120, 290, 1024)
    assert lengths.min() >= 1
    assert (lengths[:, :1] + lengths[:, 1:]).max() == 1024
    np.testing.assert_array_equal(lengths, assumed_lengths(4000, 120, 290, 1024))


@pytest.mark.parametrize(
    ("peak", "together", "fits", "platform", "verdict"),
    [
        (90, 100, True, "tpu", "fits"),
        (94, 99, True, "tpu", "tight"),  # the thorough compile may find 7% more
        (94, 99, True, "gpu", "fits"),
        (90, 101, True, "gpu", "tight"),
        (101, 120, True, "gpu", "does not fit"),
        (101, None, False, "tpu", "does not fit"),
    ],
)
def test_the_verdict(peak, together, fits, platform, verdict):
    compiled = Compiled(peak, together, fits, {})
    fields: dict[str, Any] = dict.fromkeys(Plan.__dataclass_fields__)
    made = Plan(**{**fields, "compiled": compiled, "machine": Machine(platform, 100)})
    assert made.verdict == verdict


def test_asynchronous_collectives_count_once():
    text = """
      %a = f32[8] all-gather(%x), dimensions={0}
      %b = (f32[1], f32[8]) all-gather-start(%x), dimensions={0}
      %c = f32[8] all-gather-done(%b)
      %d = f32[8] fusion(%all-reduce.1), calls=%all-reduce.2
    """
    assert collectives_in(text) == {"all-gather": 2}

"""Runs and checkpoints open wherever they lie, by what they say of themselves."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.runs.fit import fit
from jaxdpo.runs.load import load_source
from tests.run_configs import run_config, write_inputs

STEPS = ("training.max_steps=2", "training.evaluate_every=2")


def assert_same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_a_copied_checkpoint_of_all_parameters_needs_nothing_else(tmp_path):
    inputs = write_inputs(tmp_path / "inputs")
    template = inputs / "template.jinja"
    template.write_text((inputs / "model" / "chat_template.jinja").read_text() + "{# ours #}")
    run = tmp_path / "run"
    trained = fit(run_config(inputs, run, *STEPS, f"data.chat_template={template}"))
    checkpoint = tmp_path / "elsewhere" / "kept"
    shutil.copytree(run / "checkpoints" / "step_00000002", checkpoint)
    exported = tmp_path / "exported"
    shutil.copytree(run / "model", exported)
    shutil.rmtree(run)
    shutil.rmtree(inputs)
    opened = load_source(str(checkpoint))
    assert_same(opened.params, trained.policy.params)
    expected = load_policy(str(exported))
    assert_same(opened.params, expected.params)
    assert opened.config == expected.config
    assert opened.hf_config == trained.policy.hf_config
    template = opened.chat.tokenizer.chat_template
    assert isinstance(template, str) and template.endswith("{# ours #}")
    assert opened.chat.end_ids == expected.chat.end_ids
    assert opened.card is not None and str(tmp_path) not in opened.card
    opened.save(tmp_path / "again")
    assert_same(
        load_file(tmp_path / "again" / "model.safetensors"),
        load_file(exported / "model.safetensors"),
    )


@pytest.mark.slow
def test_a_copied_checkpoint_of_adapters_needs_its_base_model_and_says_so(tmp_path, monkeypatch):
    inputs, run = write_inputs(tmp_path / "inputs"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    config = run_config(inputs, run, *STEPS, "lora.rank=2", "model.path=inputs/model")
    trained = fit(config)
    checkpoint = tmp_path / "elsewhere" / "kept"
    shutil.copytree(run / "checkpoints" / "step_00000002", checkpoint)
    shutil.rmtree(run)
    # The base was named by a relative path, and is found from any directory.
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    opened = load_source(str(checkpoint))
    assert_same(opened.lora, trained.policy.lora)
    assert_same(opened.params, trained.policy.params)
    shutil.rmtree(inputs)
    with pytest.raises(UserError, match=r"kept: needs the model that it was trained from, model\."):
        load_source(str(checkpoint))


def test_a_checkpoint_of_an_earlier_version_opens_beside_its_run_alone(tmp_path):
    inputs, run = write_inputs(tmp_path / "inputs"), tmp_path / "run"
    trained = fit(run_config(inputs, run, *STEPS))
    checkpoint = run / "checkpoints" / "step_00000002"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    shutil.rmtree(checkpoint / "model")
    files = {name: at for name, at in manifest["files"].items() if not name.startswith("model/")}
    earlier = {"step": manifest["step"], "files": files}
    (checkpoint / "manifest.json").write_text(json.dumps(earlier))
    assert_same(load_source(str(checkpoint)).params, trained.policy.params)
    assert_same(load_source(str(run)).params, trained.policy.params)
    shutil.copytree(checkpoint, tmp_path / "kept")
    with pytest.raises(UserError, match="an earlier version wrote it"):
        load_source(str(tmp_path / "kept"))

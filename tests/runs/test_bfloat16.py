"""Runs whose parameters are bfloat16 learn as those in float32 do, continue, export and open."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from jaxdpo.config import load_config
from jaxdpo.runs.fit import fit
from jaxdpo.runs.load import load_source
from tests.run_configs import run_config, write_inputs

# Three runs of two hundred steps: JAXDPO_TEST_BFLOAT16=all python -m pytest tests/runs
EVERYTHING = os.environ.get("JAXDPO_TEST_BFLOAT16") == "all"
SETTINGS = (
    "training.max_steps=24",
    "training.epochs=99",
    "training.evaluate_every=24",
    "checkpoint.every=12",
    "optimizer.learning_rate=1e-4",
    "loss.beta=0.2",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    # As models are on the Hub.
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def runs(inputs):
    return {
        dtype: fit(run_config(inputs, inputs / dtype, *SETTINGS, f"model.param_dtype={dtype}"))
        for dtype in ("float32", "bfloat16")
    }


def test_all_parameters_learn_as_in_float32(runs):
    losses = {dtype: run.summary["test"]["after"]["loss"] for dtype, run in runs.items()}
    before = runs["float32"].summary["test"]["before"]["loss"]
    # Weights kept in bfloat16 would hardly have moved: the loss would be the one before.
    assert losses["float32"] < 0.95 * before
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=2e-2)


def test_what_is_exported_and_opened_is_in_the_dtype_that_was_computed_with(runs):
    run = runs["bfloat16"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.policy.params)} == {"bfloat16"}
    with safe_open(run.folder / "model" / "model.safetensors", framework="pt") as file:
        dtypes = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118
    assert dtypes == {"torch.bfloat16"}
    opened = load_source(str(run.folder))
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(opened.params),
        jax.device_get(run.policy.params),
    )
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(opened.params))


def test_a_run_that_was_cut_off_ends_with_the_same_bits(runs, inputs):
    whole = runs["bfloat16"].folder
    half = whole.with_name("half")
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "step_00000024")
    shutil.rmtree(half / "model")
    (half / "summary.json").unlink()
    fit(run_config(inputs, half, *SETTINGS, "model.param_dtype=bfloat16"))
    model = "model/model.safetensors"
    assert (half / model).read_bytes() == (whole / model).read_bytes()
    steps = [json.loads(line)["step"] for line in (half / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(24) == 2


@pytest.mark.slow
def test_merged_adapters_say_what_rounding_loses_of_them(inputs, capsys):
    """The share by hand, from the files: the merged weights, the base's, and the adapter's."""
    adapters = ("lora.rank=4", "model.param_dtype=bfloat16")
    run = fit(run_config(inputs, inputs / "merged", *SETTINGS, *adapters))
    said = capsys.readouterr().out.replace("\n", " ")
    policy = run.policy
    assert policy.lora is not None and policy.lora_config is not None
    lost = learned = 0.0
    with safe_open(run.folder / "model" / "model.safetensors", framework="np") as file:
        for name, path in (("q", "self_attn.q_proj"), ("down", "mlp.down_proj")):
            part = "attention" if name == "q" else "mlp"
            kernel = np.asarray(policy.params["layers"][part][name]["kernel"], np.float64)
            pair = policy.lora["layers"][part][name]
            a, b = (np.asarray(pair[side], np.float64) for side in "ab")
            delta = policy.lora_config.scale * a @ b
            for layer in range(2):
                tensor = file.get_tensor(f"model.layers.{layer}.{path}.weight")
                lost += np.square(tensor.T.astype(np.float64) - kernel[layer] - delta[layer]).sum()
                learned += np.square(delta[layer]).sum()
    share = np.sqrt(lost / learned)
    assert share > 0.05
    # Two of seven maps stand for all of them.
    np.testing.assert_allclose(run.summary["rounding_loss"], share, rtol=0.3)
    assert "of what the adapters learned" in said and "export.lora=adapter keeps all of it" in said

    wide = fit(run_config(inputs, inputs / "wide", *SETTINGS, *adapters, "export.dtype=float32"))
    assert wide.summary["rounding_loss"] < 1e-4
    exact = policy.lora_config.scale * a[0] @ b[0] + kernel[0]
    with safe_open(wide.folder / "model" / "model.safetensors", framework="np") as file:
        merged = file.get_tensor("model.layers.0.mlp.down_proj.weight").T
    np.testing.assert_allclose(merged, exact, atol=1e-7)


@pytest.mark.skipif(not EVERYTHING, reason="set JAXDPO_TEST_BFLOAT16=all: takes six minutes")
def test_two_hundred_steps_of_the_quickstart_end_within_two_percent(tmp_path):
    """All parameters in bfloat16, and computed in it too, learn what they learn in float32."""
    losses = {}
    for name, dtypes in (
        ("float32", []),
        ("parameters", ["model.param_dtype=bfloat16"]),
        ("all", ["model.param_dtype=bfloat16", "model.compute_dtype=bfloat16"]),
    ):
        settings = ["training.epochs=99", "training.max_steps=200", "training.evaluate_every=200"]
        quiet = ["training.completions=0", "training.watch.prompts=0"]
        places = [f"training.folder={tmp_path / name}", f"data.cache_dir={tmp_path}"]
        config = load_config("configs/quickstart.yaml", [*settings, *quiet, *places, *dtypes])
        tested = [record for record in fit(config).history if record["split"] == "TEST"]
        losses[name] = tested[-1]["loss"]
    assert losses["float32"] < 0.1
    np.testing.assert_allclose(losses["parameters"], losses["float32"], rtol=2e-2)
    np.testing.assert_allclose(losses["all"], losses["float32"], rtol=2e-2)

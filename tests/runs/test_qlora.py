"""Runs that train adapters on a base in codes: what they start from, learn, save and export."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from jaxdpo.config import load_config
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy, on_mesh, open_policy
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.model.digest import weights_digest
from jaxdpo.model.quantized import quantize
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.fit import fit
from jaxdpo.runs.load import load_source
from tests.folders import write_model, write_pairs
from tests.tiny import hidden_states, mesh_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("qlora") / "model")


@pytest.fixture(scope="module")
def trained(model):
    """A finished run of eight steps, saved every four, and how to start another."""
    folder = model.parent
    write_pairs(folder / "pairs.jsonl", 38, test=6)

    def start(name: str, *overrides: str):
        settings = {
            "model.path": model,
            "data.path": folder / "pairs.jsonl",
            "data.cache_dir": folder / "cache",
            "training.folder": folder / name,
            "training.epochs": 2,
            "training.completions": 1,
            "training.evaluate_every": 4,
            "checkpoint.every": 4,
            "batch.size": 8,
            "lora.rank": 4,
            "lora.base": "nf4",
            "loss.beta": 1.0,
            "optimizer.learning_rate": 2e-2,
            "mesh.data": 1,
            "mesh.fsdp": 2,
            "mesh.tensor": 4,
        }
        given = [f"{field}={value}" for field, value in settings.items()]
        return fit(load_config(None, [*given, *overrides]))

    return start("run"), start


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_it_starts_at_its_reference_and_learns(trained):
    history = trained[0].history
    first, last = (
        next(record for record in records if record["split"] == "TRAIN")
        for records in (history, history[::-1])
    )
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
    assert last["loss"] < 0.5
    before, after = trained[0].summary["test"]["before"], trained[0].summary["test"]["after"]
    np.testing.assert_allclose(before["loss"], np.log(2), rtol=1e-5)
    assert after["loss"] < before["loss"]


def test_the_merged_model_is_the_one_that_was_trained(model, trained):
    """Codes as numbers with the adapters added, by hand; all but the kernels as they were."""
    original, merged = weights(model), weights(trained[0].folder / "model")
    adapters = jax.device_get(trained[0].policy.lora)["layers"]
    for name, tensor in merged.items():
        if "proj" not in name:
            np.testing.assert_array_equal(tensor, original[name])
            continue
        _, _, layer, part, map_, _ = name.split(".")
        part = {"self_attn": "attention"}.get(part, part)
        numbers = quantize(original[name].T, "nf4").dequantized(np.float64)
        pair = adapters[part][map_.removesuffix("_proj")]
        a, b = (pair[side][int(layer)].astype(np.float64) for side in "ab")
        np.testing.assert_allclose(tensor.T, numbers + 2 * 4 * a @ b, atol=1e-6)


def test_a_checkpoint_converts_to_the_same_and_samples_the_same(trained, tmp_path):
    run = trained[0].folder
    convert(ConvertConfig(source=str(run), target=str(tmp_path / "again"), check=True))
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "again"), weights(run / "model"))
    opened = load_source(str(run))
    assert opened.base == "nf4"
    assert weights_digest(opened.params) == weights_digest(trained[0].policy.params)


def test_resuming_gives_the_same_bits(trained):
    done, start = trained
    half = done.folder.with_name("half")
    shutil.copytree(done.folder, half)
    shutil.rmtree(half / "checkpoints" / "step_00000008")
    shutil.rmtree(half / "model")
    (half / "summary.json").unlink()
    (half / "completions_after.json").unlink()
    start("half")
    assert (half / "model" / "model.safetensors").read_bytes() == (
        done.folder / "model" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(UserError, match=r"lora.base was 'nf4', is now 'int8'"):
        start("half", "lora.base=int8")


def test_its_adapter_works_in_peft(model, trained, tmp_path):
    run = str(trained[0].folder)
    convert(ConvertConfig(source=run, target=str(tmp_path / "adapter"), lora="adapter", check=True))
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    # On the numbers that the codes stand for, PEFT has the model that was exported.
    original = weights(model)
    rounded = {
        name: torch.tensor(quantize(tensor.T, "nf4").dequantized(np.float32).T.copy())
        for name, tensor in original.items()
        if "proj" in name
    }
    state = adapted.state_dict()
    for name, tensor in weights(trained[0].folder / "model").items():
        delta = state[name] - torch.tensor(original[name])
        expected = rounded.get(name, torch.tensor(original[name])) + delta
        np.testing.assert_allclose(tensor, expected, atol=2e-6)


def test_read_on_a_mesh_it_is_what_one_device_reads(model):
    opened = open_policy(str(model)).quantized("nf4")
    mesh = mesh_of(1, 2, 4)
    cut = on_mesh(opened, mesh).params
    kernel = cut["layers"]["mlp"]["down"]["kernel"]
    # 64 inputs in one block: the codes of 32 rows of bytes are cut in four, the scales are not.
    assert kernel.codes.addressable_shards[0].data.shape == (2, 8, 16)
    assert kernel.scales.addressable_shards[0].data.shape == (2, 1, 16)
    in_memory = load_policy(str(model)).quantized("nf4").params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(cut), jax.device_get(in_memory))
    assert weights_digest(cut) == weights_digest(in_memory)


def test_other_codes_of_a_policy_in_memory_are_refused(model):
    policy = load_policy(str(model)).quantized("int8")
    assert policy.describe().endswith("float32, layers in int8")
    with pytest.raises(UserError, match=r"the policy's layers are in int8; set lora.base=int8"):
        policy.quantized("nf4")


# Mean KL of the quickstart model's predictions on TEST pairs, nats a token, as the README has it.
STATED = {"int8": 1e-4, "nf4": 0.05}


def test_the_quickstarts_predictions_move_by_less_than_stated(tmp_path):
    cache = f"data.cache_dir={tmp_path}"
    config = load_config("configs/quickstart.yaml", [f"training.folder={tmp_path}", cache])
    full = load_policy(config.model.path)
    pairs = load_pairs(config.data, full.chat).splits["TEST"]
    rows = [[2 * row, 2 * row + 1] for row in range(8)]
    shape = BatchShape(rows=8, row_length=512, pairs=2, scores=256, tiles=36)
    batch = pack_batch(pairs, rows, shape)
    compute = Compute(jnp.float32, "dense", "none")

    @jax.jit
    def logps(params):
        hidden_BTD = hidden_states(full.config, params, None, batch, compute)
        return jax.nn.log_softmax(logits(full.config, params, hidden_BTD))

    expected = logps(full.params)
    for kind, stated in STATED.items():
        found = logps(full.quantized(kind).params)
        kl = np.sum(np.exp(expected) * (expected - found), axis=-1)[batch.pair_ids > 0].mean()
        assert 0 < kl < stated, (kind, kl)

"""Training of each family: adapters, meshes and a base in few bits.

By default three families stand for all; all of them, every configuration of the tests, as before a
release:

    JAXDPO_TEST_FAMILIES=all python -m pytest tests/hub
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.devices.sharding import shardings_for
from jaxdpo.hub.adapter import load_adapter
from jaxdpo.hub.adapter_write import AdapterBase, save_adapter
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.policy import load_policy
from jaxdpo.hub.read import load_params
from jaxdpo.losses.against_reference import sigmoid_loss
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.model.quantized import is_quantized, map_kernels, quantize
from jaxdpo.scoring.score import score_completions
from tests.folders import write_model
from tests.hub.conftest import CONFIGS, EVERYTHING, make_torch_model, whole_sequences
from tests.tiny import hidden_states, mesh_of

# One whose layers are unlike, one with a fused tensor, one of parallel attention and MLP.
TRIED = list(CONFIGS) if EVERYTHING else ["glm4-moe", "glm4", "cohere2"]
UNLIKE = list(CONFIGS) if EVERYTHING else ["glm4-moe"]
IDS = np.arange(40, dtype=np.int32)[None]


def opened(name, tmp_path):
    model = make_torch_model(name, tmp_path / "base")
    hf_config = read_config(model.folder)
    config = config_from_hf(hf_config, context=IDS.size)
    return model, hf_config, config, load_params(model.folder, config, jnp.float32)


def random_lora(config, lora_config):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_lora(config, lora_config, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes
    )


def our_logits(config, params, lora, lora_config):
    compute = Compute(jnp.float32, attention="dense", remat="none", lora=lora_config)
    run = jax.jit(hidden_states, static_argnums=(0, 4))
    hidden = run(config, params, lora, whole_sequences(IDS), compute)
    return np.asarray(logits(config, params, hidden))


@pytest.mark.parametrize("name", TRIED)
def test_adapters_of_all_maps_are_the_same_in_peft(name, tmp_path):
    model, hf_config, config, params = opened(name, tmp_path)
    lora_config = LoraConfig(rank=3, alpha=4.5)
    lora = random_lora(config, lora_config)
    base = AdapterBase(str(model.folder), config, hf_config)
    save_adapter(tmp_path / "adapter", lora, lora_config, base)
    plain = AutoModelForCausalLM.from_pretrained(model.folder, attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    # Every module that PEFT adapts has weights in the file, and every adapter there a module.
    names = load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    assert {name.replace(".default", "") for name in adapted.state_dict() if "lora_" in name} == {
        *names
    }
    ids = torch.tensor(IDS).long()
    with torch.no_grad():
        expected = adapted(ids).logits.numpy()
    ours = our_logits(config, params, lora, lora_config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    loaded, _ = load_adapter(tmp_path / "adapter", config, hf_config)
    for part, linears in lora["layers"].items():
        for linear, pair in linears.items():
            back = loaded["layers"][part][linear]
            jax.tree.map(np.testing.assert_array_equal, back, pair)


@pytest.fixture(scope="module")
def batch():
    """Four rows of a pair each, which two axes of a mesh share out."""
    rng = np.random.default_rng(3)
    lengths = [(9, 5, 8), (1, 2, 1), (20, 11, 3), (4, 4, 4)]
    pairs = [
        TokenizedPair(*(rng.integers(0, 64, n).astype(np.int32) for n in triple))
        for triple in lengths
    ]
    shape = BatchShape(rows=4, row_length=36, pairs=1, scores=16, tiles=1)
    return pack_batch(pairs, [[0], [1], [2], [3]], shape)


def dpo_loss(config, params, lora, batch, compute):
    policy = score_completions(config, params, lora, batch, compute).completions.logps
    return jnp.mean(sigmoid_loss(policy[..., 0] + 30, policy[..., 1] + 31, beta=0.1))


@pytest.mark.parametrize("name", UNLIKE)
def test_gradients_on_eight_devices_equal_those_on_one(name, batch, tmp_path):
    _, _, config, params = opened(name, tmp_path)
    compute = Compute(jnp.float32, attention="tiles", remat="full")
    found = []
    for mesh in (mesh_of(1, 1, 1), mesh_of(1, 2, 2, 2)):
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings_for(params, mesh))
            gradient = jax.jit(jax.grad(lambda p: dpo_loss(config, p, None, batch, compute)))
            found.append(jax.device_get(gradient(placed)))
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(
            eight, one, rtol=0, atol=2e-5 * max(np.abs(one).max(), 1e-3)
        ),
        *found,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", UNLIKE)
def test_adapters_train_on_a_base_in_few_bits(name, kind, batch, tmp_path):
    """Their gradients are those on the same numbers in fp32."""
    _, _, config, params = opened(name, tmp_path)
    lora_config = LoraConfig(rank=2)
    compute = Compute(jnp.float32, "dense", "full", lora_config)
    # Blocks that divide the odd sizes of these models.
    quantized = map_kernels(
        lambda kernel: quantize(kernel, kind, math.gcd(kernel.shape[-2], 64)), params
    )
    plain = jax.tree.map(
        lambda leaf: leaf.dequantized(jnp.float32) if is_quantized(leaf) else leaf,
        quantized,
        is_leaf=is_quantized,
    )
    lora = random_lora(config, lora_config)
    gradient = jax.jit(jax.grad(lambda l, p: dpo_loss(config, p, l, batch, compute)))
    of_quantized, of_plain = gradient(lora, quantized), gradient(lora, plain)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one, other, rtol=0, atol=1e-5 * np.abs(other).max()
        ),
        of_quantized,
        of_plain,
    )
    kinds = {leaf.kind for leaf in jax.tree.leaves(quantized, is_leaf=is_quantized)
             if is_quantized(leaf)}  # fmt: skip
    assert kinds == {kind}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_plain))


def test_layers_that_guess_ahead_are_carried_through_an_export(tmp_path):
    """GLM-4.5 has one more layer in its files, for speculative decoding."""
    made = make_torch_model("glm4-moe", tmp_path / "plain")
    folder = write_model(tmp_path / "model", model=made.torch_model)
    path = folder / "model.safetensors"
    rng = np.random.default_rng(0)
    ahead = {
        f"model.layers.4.{name}": rng.standard_normal((3, 5)).astype(np.float16)
        for name in ("eh_proj.weight", "shared_head.head.weight", "mlp.gate.weight")
    }
    save_file({**load_file(path), **ahead}, path, metadata={"format": "pt"})
    load_policy(str(folder)).save(tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert after.keys() == load_file(path).keys()
    for name, tensor in load_file(path).items():
        assert after[name].dtype == tensor.dtype
        np.testing.assert_array_equal(after[name], tensor)


def test_corrections_of_routers_stay_in_fp32(tmp_path):
    made = make_torch_model("glm4-moe", tmp_path / "plain")
    folder = write_model(tmp_path / "model", model=made.torch_model)
    policy = load_policy(str(folder), jnp.bfloat16)
    policy.save(tmp_path / "out", dtype="bfloat16")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    corrections = [name for name in before if name.endswith("e_score_correction_bias")]
    assert len(corrections) == 3
    for name in corrections:
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], before[name])
    assert after["model.norm.weight"].dtype.name == "bfloat16"

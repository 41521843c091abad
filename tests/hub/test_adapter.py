import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from jaxdpo.devices.sharding import MeshConfig, make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter import load_adapter
from jaxdpo.hub.adapter_config import base_of
from jaxdpo.hub.adapter_write import AdapterBase, save_adapter
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.policy import load_policy
from jaxdpo.hub.read import load_params
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.model.lora import LoraConfig, init_lora
from tests.folders import write_model
from tests.hub.conftest import make_torch_model, whole_sequences
from tests.tiny import hidden_states

LORA = LoraConfig(rank=4, alpha=6.0, targets=("q", "v", "down"))


@pytest.fixture(scope="module")
def hf_config(llama):
    return read_config(llama.folder)


@pytest.fixture(scope="module")
def config(hf_config):
    return config_from_hf(hf_config)


@pytest.fixture(scope="module")
def lora(config):
    """Adapters as if trained."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_lora(config, LORA, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes
    )


@pytest.fixture
def folder(llama, lora, hf_config, config, tmp_path):
    base = AdapterBase(str(llama.folder), config, hf_config)
    save_adapter(tmp_path / "adapter", lora, LORA, base)
    return tmp_path / "adapter"


def our_logits(model, config, lora, lora_config):
    tokens = np.arange(20, dtype=np.int32)[None]
    batch = whole_sequences(tokens)
    params = load_params(model.folder, config, jnp.float32)
    compute = Compute(jnp.float32, attention="dense", remat="none", lora=lora_config)
    run = jax.jit(hidden_states, static_argnums=(0, 4))
    return np.asarray(logits(config, params, run(config, params, lora, batch, compute)))


def torch_logits(model):
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits.numpy()


def test_peft_loads_what_is_saved_with_equal_logits(llama, config, lora, folder):
    base = AutoModelForCausalLM.from_pretrained(llama.folder, attn_implementation="eager")
    adapted = torch_logits(peft.PeftModel.from_pretrained(base, folder).eval())
    ours = our_logits(llama, config, lora, LORA)
    np.testing.assert_allclose(ours, adapted, rtol=0, atol=2e-4 * np.abs(adapted).max())
    assert np.abs(adapted - torch_logits(llama.torch_model)).max() > 0.5


def random_lora(config, lora_config):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_lora(config, lora_config, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes
    )


# Family, and linear maps: all, or those that leave gaps in what PEFT adapts as one.
FUSED = [
    *((family, ("all-linear",)) for family in ("qwen2", "gemma2", "phi3-plain", "gpt2")),
    ("phi3-plain", ("q", "v", "up")),
    ("gpt2", ("k", "o")),
]


@pytest.mark.parametrize(("name", "targets"), FUSED)
def test_each_kind_of_family_has_adapters_for_peft(name, targets, tmp_path):
    model = make_torch_model(name, tmp_path / "base")
    hf_config = read_config(model.folder)
    config = config_from_hf(hf_config)
    lora_config = LoraConfig(rank=3, alpha=4.5, targets=targets)
    lora = random_lora(config, lora_config)
    target = tmp_path / "adapter"
    save_adapter(target, lora, lora_config, AdapterBase(str(model.folder), config, hf_config))
    base = AutoModelForCausalLM.from_pretrained(model.folder, attn_implementation="eager")
    plain = torch_logits(base)
    adapted = torch_logits(peft.PeftModel.from_pretrained(base, target).eval())
    scale = np.abs(adapted).max()
    assert np.abs(adapted - plain).max() > 0.05 * scale
    ours = our_logits(model, config, lora, lora_config)
    np.testing.assert_allclose(ours, adapted, rtol=0, atol=2e-4 * scale)
    # And back: the same adapters, with zeros for maps that were not adapted.
    loaded, loaded_config = load_adapter(target, config, hf_config)
    assert (loaded_config.rank, loaded_config.scale) == (3, 1.5)
    for part, linears in lora["layers"].items():
        for linear, pair in linears.items():
            back = loaded["layers"][part][linear]
            jax.tree.map(np.testing.assert_array_equal, back, pair)
    rest = our_logits(model, config, loaded, loaded_config)
    np.testing.assert_allclose(rest, ours, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "modules", "maps"),
    [
        ("llama", ["k_proj", "gate_proj"], ("gate", "k")),
        ("phi3-plain", ["qkv_proj", "down_proj"], ("down", "k", "q", "v")),
        ("gpt2", ["c_attn"], ("k", "q", "v")),
    ],
)
def test_what_peft_saves_is_loaded_with_equal_logits(name, modules, maps, tmp_path):
    made = make_torch_model(name, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(made.folder, attn_implementation="eager")
    peft_config = peft.LoraConfig(r=3, lora_alpha=9, target_modules=modules,
                                  init_lora_weights=False, task_type="CAUSAL_LM")  # fmt: skip
    model = peft.get_peft_model(base, peft_config).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert base_of(tmp_path / "adapter").name == str(made.folder)
    hf_config = read_config(made.folder)
    config = config_from_hf(hf_config)
    lora, lora_config = load_adapter(tmp_path / "adapter", config, hf_config)
    assert (lora_config.rank, lora_config.scale, lora_config.targets) == (3, 3.0, maps)
    expected = torch_logits(model)
    ours = our_logits(made, config, lora, lora_config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_loading_what_is_saved_is_the_identity(config, hf_config, lora, folder):
    loaded, lora_config = load_adapter(folder, config, hf_config)
    assert lora_config == LORA.model_copy(update={"targets": ("down", "q", "v")})
    jax.tree.map(np.testing.assert_array_equal, loaded, lora)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded, _ = load_adapter(folder, config, hf_config, mesh)
    assert sharded["layers"]["mlp"]["down"]["b"].addressable_shards[0].data.shape == (3, 4, 16)
    jax.tree.map(np.testing.assert_array_equal, sharded, lora)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora is true, but .* has no lora_magnitude_vector"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported, only 'LORA'"),
        ({"rank_pattern": {"q_proj": 8}}, "its rank is 8 by r and rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, but .* holds no tensor"),
        ({"r": 8}, r"has shape \[4, "),
    ],
)
def test_other_kinds_of_adapter_are_refused(config, hf_config, folder, change, message):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_adapter(folder, config, hf_config)


def test_an_adapter_without_a_base_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="base_model_name_or_path is None"):
        base_of(folder)


def test_an_adapter_of_a_deeper_model_is_refused(config, hf_config, folder):
    shallow = config.model_copy(update={"num_layers": 2})
    with pytest.raises(UserError, match=r"that have no use here: base_model.model.model.layers.2"):
        load_adapter(folder, shallow, hf_config)


@pytest.mark.parametrize(("name", "targets"), FUSED)
@pytest.mark.parametrize("stabilised", [False, True], ids=["", "rank-stabilised"])
def test_the_rank_that_is_stated_is_the_one_that_tensors_have(name, targets, stabilised, tmp_path):
    """Checks what vLLM's loader relies on: it knows `r` and `lora_alpha` alone, and no patterns.

    It allocates by the largest rank that it allows, refuses a larger `r`, and scales every module
    by lora_alpha / r, or lora_alpha / √r if use_rslora is set (vllm/lora/peft_helper.py).
    """
    model = make_torch_model(name, tmp_path / "base")
    hf_config = read_config(model.folder)
    config = config_from_hf(hf_config)
    lora_config = LoraConfig(rank=3, alpha=4.5, targets=targets, use_rslora=stabilised)
    base = AdapterBase(str(model.folder), config, hf_config)
    save_adapter(tmp_path / "adapter", random_lora(config, lora_config), lora_config, base)
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    ranks = {
        key: tensor.shape[0] if "lora_A" in key else tensor.shape[1]
        for key, tensor in tensors.items()
    }
    assert max(ranks.values()) == written["r"]
    for key, rank in ranks.items():
        named = [one for one in written["rank_pattern"] if f".{one}." in key]
        assert rank == (written["rank_pattern"][named[0]] if named else written["r"])
        if named:
            # The exceptions have the scale of all others.
            assert written["alpha_pattern"][named[0]] / rank == written["lora_alpha"] / written["r"]
    root = 0.5 if written["use_rslora"] else 1
    assert written["lora_alpha"] / written["r"] ** root == pytest.approx(lora_config.scale)
    assert all(any(f".{one}." in key for one in written["target_modules"]) for key in ranks)
    assert (written["bias"], written["modules_to_save"], written["use_dora"]) == (
        "none", None, False,
    )  # fmt: skip


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once(tmp_path):
    """Comes as near to the exact sum as bf16 can, with the same weights that peft merges."""
    base = write_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base).bfloat16()
    model.save_pretrained(base)
    torch.manual_seed(0)
    options: Any = dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "lora_" in key:
                value.add_(0.02 * torch.randn_like(value))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    load_policy(str(tmp_path / "adapter"), "bfloat16").save(tmp_path / "merged")
    ours = load_file(tmp_path / "merged/model.safetensors")
    parts = load_file(tmp_path / "adapter/adapter_model.safetensors")
    plain = load_file(base / "model.safetensors")
    theirs: Any = adapted.merge_and_unload()
    theirs = theirs.state_dict()
    for key in [key for key in plain if "q_proj.weight" in key or "down_proj.weight" in key]:
        stem = f"base_model.model.{key.removesuffix('.weight')}"
        a, b = (parts[f"{stem}.lora_{which}.weight"].double() for which in "AB")
        exact = plain[key].double() + 2.0 * b @ a
        assert ours[key].dtype == torch.bfloat16
        # Rounded once: no weight is further off than half a step of bf16, which has eight bits.
        off = (ours[key].double() - exact).abs()
        assert (off <= exact.abs() * 2**-8 * (1 + 1e-3) + 1e-9).all()
        # The order of fp32 additions may decide a weight that lies halfway between two of bf16.
        assert (ours[key] != theirs[key]).float().mean() < 1e-3

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.devices.sharding import MeshConfig, make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.model.lora import LoraConfig, init_lora
from tests.folders import CHATML, write_model

MESSAGES = [{"role": "user", "content": "what does the red cat see?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapted(folder):
    """A policy with adapters as if trained."""
    policy = load_policy(str(folder))
    lora_config = LoraConfig(rank=2, alpha=4.0, targets=("k", "v"))
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)),
        jax.eval_shape(lambda: init_lora(policy.config, lora_config, jax.random.key(0))),
    )
    return dataclasses.replace(policy, lora=lora, lora_config=lora_config)


def torch_logits(model):
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits.numpy()


def test_a_saved_policy_loads_in_transformers_as_it_was(folder, tmp_path):
    policy = load_policy(str(folder))
    assert policy.describe().startswith(f"{folder}: llama, 0.0")
    policy.save(tmp_path / "out")
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", folder))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.apply_chat_template(MESSAGES) == theirs.apply_chat_template(MESSAGES)
    original = AutoModelForCausalLM.from_pretrained(folder)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(torch_logits(saved), torch_logits(original))
    assert saved.generation_config.eos_token_id == original.generation_config.eos_token_id


def test_adapters_merged_and_apart_are_the_same_model(folder, adapted, tmp_path):
    adapted.save(tmp_path / "merged")
    adapted.save(tmp_path / "adapter", lora="adapter")
    merged = torch_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = torch_logits(base)
    apart = torch_logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    np.testing.assert_allclose(merged, apart, rtol=0, atol=1e-5 * np.abs(apart).max())
    assert np.abs(merged - plain).max() > 0.1

    loaded = load_policy(str(tmp_path / "adapter"))
    assert loaded.lora_config == adapted.lora_config
    jax.tree.map(np.testing.assert_array_equal, loaded.lora, adapted.lora)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, adapted.params)


def test_a_relative_base_is_found_from_elsewhere(folder, adapted, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    dataclasses.replace(adapted, source=folder.name).save(tmp_path / "adapter", lora="adapter")
    monkeypatch.chdir(tmp_path)
    assert load_policy("adapter").source == str(folder.resolve())


def test_an_adapter_of_an_adapter_is_refused(adapted, tmp_path):
    adapted.save(tmp_path / "adapter", lora="adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    itself = {**json.loads(path.read_text()), "base_model_name_or_path": str(path.parent)}
    path.write_text(json.dumps(itself))
    with pytest.raises(UserError, match=r"holds no config.json, so it is not a Hugging Face model"):
        load_policy(str(path.parent))


def test_parameters_are_sharded_over_the_mesh(folder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    policy = load_policy(str(folder), "bfloat16", mesh)
    kernel = policy.params["layers"]["mlp"]["up"]["kernel"]
    assert (kernel.dtype, kernel.addressable_shards[0].data.shape) == (jnp.bfloat16, (2, 16, 32))


def test_a_template_from_a_file_is_used_and_exported(folder, tmp_path):
    template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    (tmp_path / "own.jinja").write_text(template)
    policy = load_policy(str(folder), chat_template=str(tmp_path / "own.jinja"))
    policy.save(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template
    assert load_policy(str(tmp_path / "out")).chat.fingerprint == policy.chat.fingerprint


def test_a_token_beyond_the_embedding_is_refused_only_where_a_text_yields_it(folder, tmp_path):
    """Gemma 3 1B and CodeLlama have tokenizers with a token more than their embedding."""
    copy = shutil.copytree(folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    rows = load_policy(str(folder)).config.vocab_size
    tokenizer.add_tokens([f"<{number}>" for number in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(copy)
    policy = load_policy(str(copy))
    last = f"<{rows - len(AutoTokenizer.from_pretrained(folder))}>"
    assert policy.chat.tokenizer.convert_tokens_to_ids(last) == rows
    within = [{"role": "user", "content": "the cat sees <0>"}]
    assert max(policy.chat.encode(within)) < rows
    with pytest.raises(BadPair, match=rf"has the id {rows}, but the model's embedding has only"):
        policy.chat.encode([{"role": "user", "content": f"the cat sees {last}"}])


def test_a_quantization_config_left_over_beside_plain_weights_is_passed_over(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "config.json"
    left_over = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **left_over}))
    policy = load_policy(str(copy))
    jax.tree.map(np.testing.assert_array_equal, policy.params, load_policy(str(folder)).params)
    policy.save(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_every_token_that_ends_an_answer_is_exported(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 0, "top_k": 5}))
    load_policy(str(copy)).save(tmp_path / "out")
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    # 0 by the generation config, 2 (<|im_end|>) by the chat template and config.json.
    assert (set(written["eos_token_id"]), written["top_k"]) == ({0, 2}, 5)


def test_a_tokenizer_that_cannot_encode_is_named(tmp_path):
    """A class that builds the tokenizer anew, without the unknown token that it then needs."""
    folder = write_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": "GemmaTokenizerFast"})
    )
    with pytest.raises(UserError, match=r"cannot encode a plain sentence .* tokenizer_class"):
        load_policy(str(folder))

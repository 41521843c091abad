"""Every kind of adapter that `peft` makes: read with the logits of `peft`, or refused by name."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from tests.folders import write_model
from tests.hub.conftest import FAMILY_CONFIGS, whole_sequences
from tests.tiny import hidden_states

IDS = np.array([[5, 17, 99, 200, 31, 8, 77, 300]], np.int32)
QV = ["q_proj", "v_proj"]


def random_llama(**fields: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes: Any = dict(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes, **fields))


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    model = random_llama(tie_word_embeddings=True)
    return write_model(tmp_path_factory.mktemp("tied"), model=model)


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("untied"), model=random_llama())


def torch_logits(model, ids: np.ndarray = IDS) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(torch.tensor(ids).long()).logits.float().numpy()


def our_logits(policy: Policy, ids: np.ndarray = IDS) -> np.ndarray:
    compute = Compute(jnp.float32, attention="dense", remat="none", lora=policy.lora_config)
    batch = whole_sequences(ids)
    found: Any = hidden_states(policy.config, policy.params, policy.lora, batch, compute)
    return np.asarray(logits(policy.config, policy.params, getattr(found, "hidden", found)))


def base_model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def make_adapter(
    base: Path, folder: Path, resized: int = 0, ids: np.ndarray = IDS, **fields: Any
) -> np.ndarray:
    """Trains an adapter, as far as its weights show; returns the logits that peft then has."""
    torch.manual_seed(0)
    model = base_model(base)
    if resized:
        model.resize_token_embeddings(resized)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": QV, "task_type": "CAUSAL_LM", **fields}
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad or "lora_" in name:
                value.add_(0.1 * torch.randn_like(value))
    adapted.save_pretrained(str(folder))
    return torch_logits(adapted, ids)


def assert_close(ours: np.ndarray, expected: np.ndarray, relative: float = 2e-4) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=relative * np.abs(expected).max())


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*self_attn\.(q|k)_proj"},
    "rank-stabilised": {"use_rslora": True},
    "rank and alpha patterns": {
        "target_modules": [*QV, "down_proj"],
        "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.down_proj": 2},
        "alpha_pattern": {"v_proj": 24},
    },
    "rank-stabilised patterns": {"use_rslora": True, "rank_pattern": {"v_proj": 2}},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "DoRA": {"use_dora": True},
    "DoRA rank-stabilised in one layer": {
        "use_dora": True, "use_rslora": True, "layers_to_transform": [0],
    },
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "PiSSA of two ranks": {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norm": {"modules_to_save": ["norm"]},
    "saved norms of layers": {"modules_to_save": ["input_layernorm"]},
    "saved embedding, tied": {
        "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True,
    },
    "rows of tokens": {"trainable_token_indices": [3, 17, 99]},
    "rows of the head": {"trainable_token_indices": {"lm_head": [31, 8]}},
    "other rows of both": {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [8]}},
    "equal rows of both": {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [5]}},
    "adapted embedding": {"target_modules": [*QV, "embed_tokens"]},
    "adapted head": {"target_modules": [*QV, "lm_head"]},
    "all biases": {"bias": "all"},
    "biases of adapted modules": {"bias": "lora_only"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["tied", "untied"])
def test_logits_are_those_of_peft(kind, base, request, tmp_path):
    folder = request.getfixturevalue(base)
    expected = make_adapter(folder, tmp_path / "adapter", **KINDS[kind])
    assert np.abs(expected - torch_logits(base_model(folder))).max() > 0.01
    policy = load_policy(str(tmp_path / "adapter"))
    assert_close(our_logits(policy), expected)
    # Merged, it is an ordinary model for transformers.
    policy.save(tmp_path / "merged")
    assert_close(torch_logits(base_model(tmp_path / "merged")), expected)
    # Written as an adapter again, it is the same one for peft.
    if not policy.on_disk or policy.lora is None:
        with pytest.raises(UserError, match="nowhere on disk"):
            policy.adapter_base()
        return
    policy.save(tmp_path / "again", lora="adapter")
    again = peft.PeftModel.from_pretrained(base_model(folder), str(tmp_path / "again"))
    assert_close(torch_logits(again), expected)
    assert_close(our_logits(load_policy(str(tmp_path / "again"))), expected)


def test_embeddings_resized_for_new_tokens(untied, tied, tmp_path):
    for number, base in enumerate((untied, tied)):
        folder = tmp_path / str(number)
        words = AutoTokenizer.from_pretrained(base)
        words.add_tokens(["<think>", "</think>"])
        expected = make_adapter(
            base, folder, resized=len(words), modules_to_save=["embed_tokens", "lm_head"]
        )
        words.save_pretrained(folder)
        policy = load_policy(str(folder))
        assert policy.config.vocab_size == len(words)
        assert policy.chat.tokenizer.convert_tokens_to_ids("</think>") == len(words) - 1
        assert_close(our_logits(policy), expected)
        policy.save(folder / "merged")
        assert_close(torch_logits(base_model(folder / "merged")), expected)
        policy.save(folder / "again", lora="adapter")
        assert_close(our_logits(load_policy(str(folder / "again"))), expected)


def test_tied_embeddings_stay_tied_where_peft_ties_them(tied, tmp_path):
    expected = make_adapter(
        tied, tmp_path, modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    policy = load_policy(str(tmp_path))
    assert policy.config.tied_head
    assert_close(our_logits(policy), expected)


REFUSED: dict[str, dict[str, Any]] = {
    "init_lora_weights 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "lora_bias True": {"lora_bias": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(message, untied, tmp_path):
    make_adapter(untied, tmp_path, **REFUSED[message])
    with pytest.raises(UserError, match=rf"adapter_config.json: {message}"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq' changed the base model"),
        ({"init_lora_weights": "corda"}, "init_lora_weights 'corda' changed the base model"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights 'lora_ga' changed the base"),
        ({"init_lora_weights": "of next year"}, "init_lora_weights 'of next year' changed"),
        ({"warp_factor": 9}, "warp_factor 9 is not known here"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication .* is not supported"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens .* is not supported"),
        ({"r": 5}, "its rank is 5 by r and rank_pattern"),
        ({"r": 2.5}, "r is 2.5; it must be a whole number"),
        ({"lora_alpha": "6"}, "lora_alpha is '6'; it must be a number above 0"),
        ({"lora_dropout": 1}, "lora_dropout is 1; it must be from 0 to below 1"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices names 1 tokens"),
        ({"trainable_token_indices": [3, 400]}, "up to 400, but"),
        ({"trainable_token_indices": "all"}, "trainable_token_indices is 'all'; it must be a list"),
        ({"revision": 3}, "revision is 3; it must be the name of a branch"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern has the pattern '\('"),
    ],
)
def test_fields_that_change_the_adapter_are_refused_by_name(change, message, untied, tmp_path):
    tokens = [3, 4] if "trainable_token_indices" in change else None
    make_adapter(untied, tmp_path, trainable_token_indices=tokens)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_policy(str(tmp_path))


def test_unknown_fields_that_hold_nothing_are_passed_over(untied, tmp_path):
    expected = make_adapter(untied, tmp_path)
    path = tmp_path / "adapter_config.json"
    empty = {"of_next_year": None, "another": {}, "switched_off": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), **empty}))
    assert_close(our_logits(load_policy(str(tmp_path))), expected)


def rename(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: f"module.{name}",
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace("model.layers", "model.language_model.layers"),
    ],
    ids=["default", "module", "compiled", "language model"],
)
def test_other_trainers_names_of_an_adapters_tensors(change, untied, tmp_path):
    expected = make_adapter(untied, tmp_path)
    rename(tmp_path, change)
    assert_close(our_logits(load_policy(str(tmp_path))), expected)


def test_a_base_that_moved_can_be_named(untied, tmp_path):
    expected = make_adapter(untied, tmp_path)
    path = tmp_path / "adapter_config.json"
    moved = {**json.loads(path.read_text()), "base_model_name_or_path": "/gone/model"}
    path.write_text(json.dumps(moved))
    with pytest.raises(UserError, match=r"/gone/model: no such folder.*set model.base=PATH"):
        load_policy(str(tmp_path))
    assert_close(our_logits(load_policy(str(tmp_path), base=str(untied))), expected)
    with pytest.raises(UserError, match="is no adapter folder, so it has no base model"):
        load_policy(str(untied), base=str(untied))


def test_the_revision_of_a_base_on_the_hub_is_the_one_that_is_loaded(untied, tmp_path, monkeypatch):
    """Reads, from the Hub's own cache, a branch of the model that differs from its newest state."""
    cache = tmp_path / "models--org--name"
    for commit, branch in (("a" * 40, "main"), ("b" * 40, "v1")):
        snapshot = shutil.copytree(untied, cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / branch).write_text(commit)
    weights = load_file(snapshot / "model.safetensors")
    doubled = {name: 2 * tensor for name, tensor in weights.items()}
    save_file(doubled, snapshot / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    expected = make_adapter(snapshot, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    named = {"base_model_name_or_path": "org/name", "revision": "v1"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    policy = load_policy(str(tmp_path / "adapter"))
    assert_close(our_logits(policy), expected)
    policy.save(tmp_path / "again", lora="adapter")
    assert json.loads((tmp_path / "again/adapter_config.json").read_text())["revision"] == "v1"
    path.write_text(path.read_text().replace('"v1"', '"v2"'))
    with pytest.raises(UserError, match=r"org/name: .* of that name at revision v2"):
        load_policy(str(tmp_path / "adapter"))


@pytest.mark.parametrize("name", ["phi3-plain", "gpt2", "qwen2", "gemma2", "mixtral"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"}],
    ids=["plain", "DoRA", "rsLoRA", "PiSSA"],
)
def test_families(name, fields, tmp_path):
    family = next(group for group in FAMILY_CONFIGS.values() if name in group)
    torch.manual_seed(2)
    made = AutoModelForCausalLM.from_config(family[name])
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.2)
    # The tokenizer of `write_model` has 400 tokens, the family's embedding 64 rows.
    base = write_model(tmp_path / "base", model=made)
    targets = {
        "phi3-plain": ["qkv_proj", "down_proj"],
        "gpt2": ["c_attn", "mlp.c_proj"],
        "mixtral": ["q_proj", "o_proj"],
    }
    targeted = targets.get(name, ["q_proj", "o_proj", "up_proj"])
    ids = IDS % 64
    expected = make_adapter(base, tmp_path / "adapter", ids=ids, target_modules=targeted, **fields)
    policy = load_policy(str(tmp_path / "adapter"))
    assert_close(our_logits(policy, ids), expected)
    policy.save(tmp_path / "again", lora="adapter")
    again = peft.PeftModel.from_pretrained(base_model(base), str(tmp_path / "again"))
    assert_close(torch_logits(again, ids), expected)


# More examples, other ones each time: JAXDPO_TEST_ADAPTERS=200 python -m pytest tests/hub
EXAMPLES = int(os.environ.get("JAXDPO_TEST_ADAPTERS", 0))
ranks = st.integers(1, 6)
names = st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])


@settings(
    # The same examples every time, so that the suite does not fail by chance.
    max_examples=EXAMPLES or 25, derandomize=not EXAMPLES, deadline=None,
    # Examples that are drawn slowly are a busy machine's doing.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    fields=st.fixed_dictionaries(
        {
            "r": ranks,
            "lora_alpha": st.integers(1, 32),
            "target_modules": st.lists(names, min_size=1, unique=True),
            "use_rslora": st.booleans(),
            "use_dora": st.booleans(),
            "rank_pattern": st.dictionaries(names, ranks, max_size=2),
            "alpha_pattern": st.dictionaries(names, st.integers(1, 20), max_size=2),
            "bias": st.sampled_from(["none", "all", "lora_only"]),
            "init_lora_weights": st.sampled_from([True, False, "gaussian", "pissa", "olora"]),
            "modules_to_save": st.sampled_from(
                [None, ["lm_head"], ["embed_tokens"], ["norm", "lm_head"]]
            ),
            "trainable_token_indices": st.sampled_from([None, [7], {"lm_head": [3, 200]}]),
            "layers_to_transform": st.sampled_from([None, [0], [1], [0, 1]]),
        }
    )
)
def test_random_adapters_have_the_logits_of_peft(fields, untied, tmp_path_factory):
    rows = fields["trainable_token_indices"]
    named = set(rows) if isinstance(rows, dict) else {"embed_tokens"} if rows else set()
    # PEFT refuses to train a module whole and by rows.
    assume(not named & set(fields["modules_to_save"] or ()))
    folder = tmp_path_factory.mktemp("random")
    expected = make_adapter(untied, folder, **fields)
    assert_close(our_logits(load_policy(str(folder))), expected)

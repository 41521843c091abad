import contextlib
from typing import Any

import jax
import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxdpo.devices.sharding import path_name
from jaxdpo.errors import UserError
from jaxdpo.hub.families import FAMILIES, config_from_hf, config_to_hf, family_of
from jaxdpo.hub.folder import read_config
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.rope import LinearScaling, Llama3Scaling, RopeConfig
from tests.hub.conftest import FAMILY_CONFIGS

LLAMA = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def test_the_table_names_every_parameter_once(each_model):
    original = read_config(each_model.folder)
    config = config_from_hf(original)
    params = abstract_params(config, "f4")
    rows = family_of(original).rows(config)
    paths = [row.path for row in rows]
    assert len(set(paths)) == len(paths) == len({(row.hf_name, row.columns) for row in rows})
    assert {path_name(path) for path, _ in jax.tree.leaves_with_path(params)} <= set(paths)


def test_every_family_is_tested():
    assert FAMILY_CONFIGS.keys() == FAMILIES.keys()


ADDED = {
    "rope_theta",
    "rope_scaling",
    "head_dim",
    "partial_rotary_factor",
    "rope_local_base_freq",
}


def test_config_survives_the_way_out_and_back(each_model):
    original = read_config(each_model.folder)
    config = config_from_hf(original)
    written = config_to_hf(config, original)
    assert config_from_hf(written) == config
    written |= {key: None for key in ADDED if original.get(key, 0) is None}
    assert {k: v for k, v in written.items() if k not in ADDED - original.keys()} == original


def test_a_new_model_needs_only_its_type(each_model):
    original = read_config(each_model.folder)
    config = config_from_hf(original)
    written = config_to_hf(config, {"model_type": original["model_type"]})
    assert config_from_hf(written) == config
    hf = AutoConfig.for_model(**written)
    assert config_from_hf(hf.to_dict()) == config
    assert hf.architectures == original["architectures"]


def test_sequences_longer_than_the_original_context_have_their_own_rotation():
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    hf = {**LLAMA, "rope_parameters": dynamic, "max_position_embeddings": 16}
    short, long = config_from_hf(hf, context=16), config_from_hf(hf, context=17)
    assert config_from_hf(hf) == short != long
    assert config_from_hf(config_to_hf(long, hf), context=17) == long


def test_a_family_refuses_what_it_cannot_express():
    config = config_from_hf({**LLAMA, "attention_bias": True})
    with pytest.raises(UserError, match="the mistral family cannot express this model"):
        config_to_hf(config, {"model_type": "mistral"})


def test_missing_fields_have_the_defaults_of_transformers():
    mistral = config_from_hf(
        {**LLAMA, "model_type": "mistral", "num_attention_heads": 8, "head_dim": 2}
    )
    assert mistral.attention.windows == (4096, 4096)
    assert mistral.attention.num_kv_heads == 8
    assert config_from_hf(LLAMA).attention.num_kv_heads == 2
    assert config_from_hf(LLAMA).attention.rope == RopeConfig(theta=10000.0)
    many = {"num_attention_heads": 32, "head_dim": 2, "num_hidden_layers": 30}
    qwen2 = config_from_hf({**LLAMA, **many, "model_type": "qwen2", "use_sliding_window": True})
    assert qwen2.attention.windows == (None,) * 28 + (4096,) * 2
    assert qwen2.attention.qkv_bias and not qwen2.attention.output_bias


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(theta=5e5)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            RopeConfig(theta=1e4, scaling=LinearScaling(factor=2.0)),
        ),
        (
            {
                "max_position_embeddings": 99,
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                },
            },
            RopeConfig(
                theta=5e5,
                scaling=Llama3Scaling(
                    factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=99
                ),
            ),
        ),
    ],
)  # fmt: skip
def test_both_spellings_of_rope_are_read_and_written(fields, rope):
    config = config_from_hf({**LLAMA, **fields})
    assert config.attention.rope == rope
    written = config_to_hf(config, {**LLAMA, **fields})
    legacy = {k: v for k, v in written.items() if k != "rope_parameters"}
    modern = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert config_from_hf(legacy).attention.rope == rope
    assert config_from_hf(modern).attention.rope == rope


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "'lama' is not supported; did you mean 'llama'.*mistral"),
        ({"model_type": None}, "model_type None is not supported"),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}},
            "'llava' holds a text model, llama, among others; .* saved by itself",
        ),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "qwen3"}},
            "'mistral3' holds a text model, qwen3, among others; .* saved by itself",
        ),
        (
            {"model_type": "granitemoehybrid", "num_local_experts": 0,
             "layer_types": ["attention", "mamba"]},
            "layer_types has attention, mamba; only models whose layers are all attention",
        ),
        ({"model_type": "granitemoehybrid"}, "num_local_experts 8 is not implemented"),
        (
            {"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}},
            "llama_4_scaling_beta is missing",
        ),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not implemented; there are silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .*bits.* is not implemented"),
        ({"hidden_size": None}, "hidden_size is None; it must be a number from 1"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 2}, "3 is not a mul"),
        ({"head_dim": 3}, "head_dim"),
        ({"rope_scaling": {"type": "mrope", "factor": 2}}, "rope_type 'mrope' is not implemented"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}},
            "rope_type 'linear' has mrope_section, which is not implemented",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs factor"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2},
             "rope_parameters": {"rope_type": "linear", "factor": 4}},
            "factor is 4 in rope_parameters but 2 in the older spelling",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1 is not implemented"),
        ({"model_type": "mistral", "layer_types": ["full_attention"]}, "layer_types"),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2},
            "layer_types has sliding_attention, but use_sliding_window",
        ),
        ({"model_type": "qwen2", "layer_types": ["chunked"]}, "layer_types has 'chunked'"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_named(change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**LLAMA, **change})


YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "without"),
    [
        # DeepSeek-R1-0528-Qwen3-8B.
        ({"rope_scaling": {**YARN, "attn_factor": 0.878}}, {"rope_scaling": YARN}),
        (
            {"rope_scaling": {**YARN, "finetuned": True, "extrapolation_factor": 1.0}},
            {"rope_scaling": YARN},
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            {"rope_theta": 1e6},
        ),
    ],
    ids=["attn_factor", "finetuned", "stale theta"],
)
def test_what_transformers_passes_over_is_passed_over(change, without):
    sizes = {**LLAMA, "max_position_embeddings": 131072}
    ours = config_from_hf({**sizes, **change})
    assert ours == config_from_hf({**sizes, **without})
    # transformers says so too: both make the same frequencies of both.
    rotations = [
        LlamaRotaryEmbedding(LlamaConfig(**{**sizes, **fields})) for fields in (change, without)
    ]
    assert torch.equal(rotations[0].inv_freq, rotations[1].inv_freq)
    assert rotations[0].attention_scaling == rotations[1].attention_scaling
    written = config_to_hf(ours, {**sizes, **change})
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
    assert config_from_hf(written) == ours


# Fields that change no logits: of training, of generation, or of nothing.
HARMLESS = {
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "initializer_range",
    "use_cache", "transformers_version", "attention_dropout", "resid_pdrop", "embd_pdrop",
    "pretraining_tp", "_sliding_window_pattern", "attn_pdrop", "output_router_logits",
    "reorder_and_upcast_attn",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "residual_dropout", "eod_token_id",
    "num_mtp_layers", "num_nextn_predict_layers",
    # Granite's, of layers and experts that these models do not have.
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
    "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit",
}  # fmt: skip


# Fields that matter only where others do not decide: (field, config) → whether it is read.
def slides(hf: dict[str, Any]) -> bool:
    return "sliding_attention" in hf.get("layer_types", ["sliding_attention"])


def has_dense_layers(hf: dict[str, Any]) -> bool:
    return bool(
        hf.get("mlp_only_layers")
        or hf.get("decoder_sparse_step", 1) > 1
        or hf.get("first_k_dense_replace")
    )


UNREAD = {
    "max_position_embeddings": lambda hf: (
        (hf.get("rope_parameters") or {}).get("rope_type") not in ("dynamic", "longrope")
        or "alpha" in hf["rope_parameters"]
    ),
    "original_max_position_embeddings": lambda hf: hf["rope_parameters"]["rope_type"] == "default",
    "max_window_layers": lambda hf: "layer_types" in hf,
    "no_rope_layer_interval": lambda hf: "no_rope_layers" in hf,
    "sliding_window": lambda hf: not hf.get("use_sliding_window", True) or not slides(hf),
    "use_sliding_window": lambda hf: hf["sliding_window"] is None or not slides(hf),
    "intermediate_size": lambda hf: (
        ("moe_intermediate_size" in hf and not has_dense_layers(hf))
        or "shared_intermediate_size" in hf
    ),
    "num_experts_per_tok": lambda hf: hf.get("num_local_experts") == 0,
    "router_aux_loss_coef": lambda hf: hf.get("num_local_experts") == 0,
    # Beside a list of the layers' types nothing reads it.
    "sliding_window_pattern": lambda hf: "layer_types" in hf,
    "attn_logit_softcapping": lambda hf: hf["model_type"] == "gemma3_text",
}


def another(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value * 2 + 2
    if isinstance(value, str):
        return "another"
    if isinstance(value, list):
        return [another(entry) for entry in value] if value else [0]
    return {key: another(entry) for key, entry in value.items()}


def test_every_field_of_a_config_is_read_or_refused(each_model):
    original = read_config(each_model.folder)
    config = config_from_hf(original)
    for field in original.keys() - HARMLESS:
        if field in UNREAD and UNREAD[field](original):
            continue
        with contextlib.suppress(UserError):
            assert config_from_hf({**original, field: another(original[field])}) != config, field

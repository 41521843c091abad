import jax
import pytest
from transformers import AutoConfig

from jaxdpo.errors import UserError
from jaxdpo.hub.families import FAMILIES, config_from_hf, config_to_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.rope import LinearScaling, Llama3Scaling, RopeConfig
from jaxdpo.sharding import path_name

LLAMA = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_table_names_every_parameter_once(family):
    ours = [row.ours for row in family.rows]
    assert len(set(ours)) == len(ours) == len({row.theirs for row in family.rows})
    biased = config_from_hf({**LLAMA, "attention_bias": True, "mlp_bias": True})
    paths = {
        path_name(path) for path, _ in jax.tree.leaves_with_path(abstract_params(biased, "f4"))
    }
    assert paths == set(ours)


def test_config_survives_the_way_out_and_back(each_model):
    original = read_config(each_model.folder)
    config = config_from_hf(original)
    written = config_to_hf(config, original)
    assert config_from_hf(written) == config
    added = {"rope_theta", "rope_scaling", "head_dim"}
    assert {k: v for k, v in written.items() if k not in added - original.keys()} == original


def test_a_new_model_needs_only_its_type(each_model):
    original = read_config(each_model.folder)
    config = config_from_hf(original)
    written = config_to_hf(config, {"model_type": original["model_type"]})
    assert config_from_hf(written) == config
    hf = AutoConfig.for_model(**written)
    assert hf.rope_parameters == original["rope_parameters"]
    assert hf.architectures == original["architectures"]


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
    assert config_from_hf(LLAMA).rope == RopeConfig(theta=10000.0)
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
    assert config.rope == rope
    written = config_to_hf(config, {**LLAMA, **fields})
    legacy = {k: v for k, v in written.items() if k != "rope_parameters"}
    modern = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert config_from_hf(legacy).rope == config_from_hf(modern).rope == rope


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "'lama' is not supported; did you mean 'llama'.*mistral"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented for llama"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .*bits.* is not implemented"),
        ({"hidden_size": None}, "hidden_size is None; it must be a number ≥ 1"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 2}, "3 is not a mul"),
        ({"head_dim": 3}, "head_dim"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_type 'yarn' is not implemented"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs factor"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 1000000.0 in"),
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


def test_every_size_and_switch_reaches_the_architecture(each_model):
    original = read_config(each_model.folder)
    for field, value in {
        "rms_norm_eps": 0.5,
        "tie_word_embeddings": not original["tie_word_embeddings"],
        "head_dim": 14,
        "intermediate_size": 99,
        "vocab_size": 77,
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0},
        "num_key_value_heads": 4 if original["num_key_value_heads"] != 4 else 2,
    }.items():
        assert config_from_hf({**original, field: value}) != config_from_hf(original), field

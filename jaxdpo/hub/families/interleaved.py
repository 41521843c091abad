"""Families that rotate neighbouring channels together: GLM-4, ERNIE 4.5, Command R7B and A."""

from typing import Any

from jaxdpo.hub.families.family import (
    LLAMA_DEFAULTS,
    LLAMA_ONLY,
    Family,
    Fields,
    HfConfig,
    llama_fields,
    llama_rows,
    merged,
    sizes_to_hf,
    windows_of,
    windows_to_hf,
    with_rows,
)
from jaxdpo.hub.families.row import Row, fused
from jaxdpo.hub.rope import rope_from_hf, rope_to_hf
from jaxdpo.model.config import ModelConfig


def _glm4_rows(config: ModelConfig) -> tuple[Row, ...]:
    middle, layer = config.mlp.intermediate_size, "model.layers.{i}"
    return with_rows(
        llama_rows(config),
        Row("layers/attention_post_norm/scale", f"{layer}.post_self_attn_layernorm.weight"),
        Row("layers/mlp_post_norm/scale", f"{layer}.post_mlp_layernorm.weight"),
        *fused("mlp", {"gate": middle, "up": middle}, f"{layer}.mlp.gate_up_proj"),
    )


def _read_glm4(hf: HfConfig, context: int | None) -> Fields:
    changes = {
        "attention": {"output_bias": False, "interleaved": True},
        "mlp": {"bias": False},
        "norm": {"after": True},
    }
    return merged(llama_fields(hf, context, partial=0.5), changes)


def _write_glm4(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    return {
        **sizes_to_hf(config, original),
        **share_to_hf(config),
        "attention_bias": config.attention.qkv_bias,
    }


def share_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Writes the share of each head that is rotated, of families whose default is not all of it."""
    rope = config.attention.rope
    return {} if rope is None else {"partial_rotary_factor": rope.partial}


def _read_ernie(hf: HfConfig, context: int | None) -> Fields:
    # One field for the biases of all linear maps.
    named = {**hf, "attention_bias": hf["use_bias"], "mlp_bias": hf["use_bias"]}
    fields = llama_fields(named, context, theta=500000.0)
    return merged(fields, {"attention": {"interleaved": True}})


def _write_ernie(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    return {**sizes_to_hf(config, original), "use_bias": config.mlp.bias}


def _cohere2_rows(config: ModelConfig) -> tuple[Row, ...]:
    return with_rows(llama_rows(config), without=("layers/mlp_norm",))


def _read_cohere2(hf: HfConfig, context: int | None) -> Fields:
    layers, pattern = hf["num_hidden_layers"], hf["sliding_window_pattern"]
    sliding = [(number + 1) % pattern != 0 for number in range(layers)]
    windows = windows_of(hf, sliding, hf["sliding_window"])
    # Only the layers with a window have positions; the others see everything alike.
    rope = rope_from_hf(hf, context)
    each = windows["windows"] or (None,) * layers
    attention = {
        **windows,
        "interleaved": True,
        "rope": None,
        "layer_ropes": tuple(None if window is None else rope for window in each),
    }
    changes = {
        "attention": attention,
        "mlp": {"bias": False},
        "norm": {"kind": "layer-unbiased"},
        "parallel": True,
        "logit_scale": hf["logit_scale"],
    }
    return merged(llama_fields(hf, context), changes)


def _write_cohere2(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written, ropes = sizes_to_hf(config, original), config.attention.ropes
    written["layer_norm_eps"] = written.pop("rms_norm_eps")
    return {
        **written,
        **windows_to_hf(config),
        **({} if not ropes else rope_to_hf(ropes[0], original)),
        "attention_bias": config.attention.qkv_bias,
        "logit_scale": config.logit_scale,
    }


INTERLEAVED_FAMILIES = (
    Family(
        "glm4", "Glm4ForCausalLM", _glm4_rows, _read_glm4, _write_glm4,
        defaults={
            **LLAMA_DEFAULTS,
            "rms_norm_eps": 1.5625e-7,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
        },
        only=LLAMA_ONLY,
    ),
    Family(
        "ernie4_5", "Ernie4_5ForCausalLM", llama_rows, _read_ernie, _write_ernie,
        defaults={
            **LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "use_bias": False,
        },
        only=LLAMA_ONLY,
    ),
    Family(
        "cohere2", "Cohere2ForCausalLM", _cohere2_rows, _read_cohere2, _write_cohere2,
        defaults={
            **LLAMA_DEFAULTS,
            "layer_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "logit_scale": 0.0625,
        },
        names={"rms_norm_eps": "layer_norm_eps"},
        only=LLAMA_ONLY,
    ),
)  # fmt: skip

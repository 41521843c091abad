"""Gemma 1, 2 and 3 (text)."""

import math
from typing import Any

from jaxdpo.hub.families.family import (
    LLAMA_DEFAULTS,
    LLAMA_ONLY,
    QK_NORM_ROWS,
    Family,
    Fields,
    HfConfig,
    activation_to_hf,
    llama_fields,
    llama_rows,
    merged,
    sizes_to_hf,
    windows_of,
    windows_to_hf,
    with_rows,
)
from jaxdpo.hub.families.row import Row
from jaxdpo.hub.rope import layer_ropes_from_hf, layer_ropes_to_hf
from jaxdpo.model.config import ModelConfig

# Sliding layers see near tokens only and keep Gemma 2's θ; full layers reach across the context.
_THETAS = {"full_attention": 1000000.0, "sliding_attention": 10000.0}


def _gemma_fields(hf: HfConfig, context: int | None) -> Fields:
    # Gemma multiplies embeddings by √hidden_size and stores norms as their difference from 1.
    changes = {
        "mlp": {"bias": False},
        "norm": {"kind": "rms-plus-one"},
        "embed_scale": math.sqrt(hf["hidden_size"]),
    }
    return merged(llama_fields(hf, context), changes)


def _read_gemma(hf: HfConfig, context: int | None) -> Fields:
    # Google's first configs say "gelu" and mean the tanh approximation; transformers obeys.
    act = hf.get("hidden_activation") or hf["hidden_act"]
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    return _gemma_fields({**hf, "hidden_act": act}, context)


def _write_gemma(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = sizes_to_hf(config, original)
    if config.mlp.activation == "gelu-tanh":
        # By its own name, even where the original says "gelu": transformers 5 takes that for the
        # tanh approximation too, but 4.57 takes it at its word.
        written["hidden_act"] = "gelu_pytorch_tanh"
    if original.get("hidden_activation"):
        written["hidden_activation"] = written["hidden_act"]
    return {**written, "attention_bias": config.attention.qkv_bias}


def _gemma2_rows(config: ModelConfig) -> tuple[Row, ...]:
    layer = "model.layers.{i}"
    # Llama's post_attention_layernorm stands before the MLP; Gemma 2 uses the name for a norm after
    # the attention and has new names for the two around the MLP.
    return with_rows(
        llama_rows(config),
        Row("layers/attention_post_norm/scale", f"{layer}.post_attention_layernorm.weight"),
        Row("layers/mlp_norm/scale", f"{layer}.pre_feedforward_layernorm.weight"),
        Row("layers/mlp_post_norm/scale", f"{layer}.post_feedforward_layernorm.weight"),
    )


def _read_gemma2(hf: HfConfig, context: int | None) -> Fields:
    # Gemma 2 alternates: layers 0, 2, 4, … see a window, the others everything.
    sliding = [number % 2 == 0 for number in range(hf["num_hidden_layers"])]
    named = {**hf, "hidden_act": hf["hidden_activation"]}
    changes = {
        "attention": {
            # Not head_dim: Gemma 2 27B divides by √(hidden_size / heads).
            "scale": hf["query_pre_attn_scalar"] ** -0.5,
            "softcap": hf["attn_logit_softcapping"],
            **windows_of(hf, sliding, hf["sliding_window"]),
        },
        "norm": {"after": True},
        "logit_softcap": hf["final_logit_softcapping"],
    }
    return merged(_gemma_fields(named, context), changes)


def _write_gemma2(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = sizes_to_hf(config, original)
    del written["hidden_act"]
    scale = config.attention.scale or 1.0
    return {
        **written,
        **windows_to_hf(config),
        "hidden_activation": activation_to_hf(config, original, "hidden_activation"),
        "attention_bias": config.attention.qkv_bias,
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": config.attention.softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _whole(number: float) -> float:
    """Rounds a number that is whole but for rounding errors."""
    return round(number) if abs(number - round(number)) < 1e-9 * number else number


def _read_gemma3(hf: HfConfig, context: int | None) -> Fields:
    layers, pattern = hf["num_hidden_layers"], hf["sliding_window_pattern"]
    windows = windows_of(hf, [(n + 1) % pattern != 0 for n in range(layers)], hf["sliding_window"])
    # The rotary embeddings are read by type of layer instead.
    plain = {**hf, "rope_parameters": None, "rope_scaling": None, "rope_theta": None}
    # transformers keeps the attention's soft cap of Gemma 2 in the config and never applies it.
    plain |= {"attn_logit_softcapping": None, **_types(windows["windows"], layers)}
    by_type = layer_ropes_from_hf(hf, _THETAS, context, local="rope_local_base_freq")
    changes = {"rope": None, "qk_norm": "head", "layer_ropes": of_layers(by_type, plain)}
    return merged(_read_gemma2(plain, context), {"attention": changes})


def _types(windows: tuple[int | None, ...] | None, layers: int) -> dict[str, Any]:
    full, sliding = "full_attention", "sliding_attention"
    return {"layer_types": [full if w is None else sliding for w in windows or (None,) * layers]}


def of_layers(by_type: dict[str, Any], hf: HfConfig) -> tuple[Any, ...]:
    """Returns the value of each layer, given that of each type of layer."""
    return tuple(by_type[layer_type] for layer_type in hf["layer_types"])


def _write_gemma3(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = _write_gemma2(config, original)
    del written["attn_logit_softcapping"]
    ropes = layer_ropes_to_hf(config.attention, original, _THETAS, local="rope_local_base_freq")
    return {**written, **ropes}


_GEMMA_DEFAULTS = {**LLAMA_DEFAULTS, "tie_word_embeddings": True, "head_dim": 256}
_GEMMA_ONLY = {**LLAMA_ONLY, "use_bidirectional_attention": (None, False)}
_GEMMA2_DEFAULTS = {
    **_GEMMA_DEFAULTS,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

GEMMA_FAMILIES = (
    Family(
        "gemma", "GemmaForCausalLM", llama_rows, _read_gemma, _write_gemma,
        defaults={
            **_GEMMA_DEFAULTS, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"
        },
        only=_GEMMA_ONLY,
    ),
    Family(
        "gemma2", "Gemma2ForCausalLM", _gemma2_rows, _read_gemma2, _write_gemma2,
        defaults=_GEMMA2_DEFAULTS,
        only=_GEMMA_ONLY,
    ),
    Family(
        "gemma3_text", "Gemma3ForCausalLM",
        lambda config: _gemma2_rows(config) + QK_NORM_ROWS,
        _read_gemma3, _write_gemma3,
        defaults={
            **_GEMMA2_DEFAULTS, "sliding_window_pattern": 6, "final_logit_softcapping": None
        },
        only=_GEMMA_ONLY,
    ),
)  # fmt: skip

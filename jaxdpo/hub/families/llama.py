"""Llama and its near relations: Mistral, Qwen2, Qwen3, SmolLM3, Phi-3, Seed-OSS, AFM, Hunyuan."""

from typing import Any

from jaxdpo.hub.families.family import (
    LLAMA_DEFAULTS,
    LLAMA_ONLY,
    QK_NORM_ROWS,
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
from jaxdpo.hub.rope import both_spellings, joined_fields, rope_from_hf, rope_to_hf
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.rope import LongScaling

_NO_BIAS = {"attention": {"qkv_bias": False, "output_bias": False}, "mlp": {"bias": False}}


def write_llama(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    """Writes the fields that `llama_fields` reads."""
    return {
        **sizes_to_hf(config, original),
        "attention_bias": config.attention.qkv_bias,
        "mlp_bias": config.mlp.bias,
    }


def read_mistral(hf: HfConfig, context: int | None, theta: float = 10000.0) -> Fields:
    """Reads the fields of a Llama without biases and with one window for all layers.

    Args:
      hf: config.json, with the family's defaults filled in.
      context: Longest sequence there will be, in tokens; None for the original context.
      theta: The family's default base of the rotary frequencies.
    """
    window = hf["sliding_window"]
    windows = None if window is None else (window,) * hf["num_hidden_layers"]
    fields = merged(llama_fields(hf, context, theta), _NO_BIAS)
    return merged(fields, {"attention": {"windows": windows}})


def write_mistral(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    """Writes the fields that `read_mistral` reads."""
    windows = config.attention.windows
    window = None if windows is None else windows[0]
    return {**sizes_to_hf(config, original), "sliding_window": window}


def _qwen_windows(hf: HfConfig) -> Fields:
    # The first max_window_layers layers see everything, the rest a window.
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    first = hf["max_window_layers"]
    sliding = [window is not None and n >= first for n in range(hf["num_hidden_layers"])]
    return windows_of(hf, sliding, window)


def _qwen_windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    # Without this switch Qwen's readers pass over layer_types and sliding_window.
    used = config.attention.windows is not None
    return {**windows_to_hf(config), "use_sliding_window": used}


def _read_qwen2(hf: HfConfig, context: int | None) -> Fields:
    # Qwen2 has biases on q, k and v only, and no field that says so.
    bias = {"qkv_bias": True, "output_bias": False}
    changes = {"attention": {**bias, **_qwen_windows(hf)}, "mlp": {"bias": False}}
    return merged(llama_fields(hf, context), changes)


def _write_qwen2(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    return {**sizes_to_hf(config, original), **_qwen_windows_to_hf(config)}


def _read_qwen3(hf: HfConfig, context: int | None) -> Fields:
    changes = {"attention": {"qk_norm": "head", **_qwen_windows(hf)}, "mlp": {"bias": False}}
    return merged(llama_fields(hf, context), changes)


def _write_qwen3(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    # One field for all four maps, which the reader made of it.
    bias = config.attention.qkv_bias
    return {**_write_qwen2(config, original), "attention_bias": bias}


def _read_smollm3(hf: HfConfig, context: int | None) -> Fields:
    layers = range(hf["num_hidden_layers"])
    # 1 where a layer rotates. Every fourth layer has no positions at all (NoPE,
    # https://arxiv.org/abs/2501.18795).
    rotated = hf.get("no_rope_layers") or [
        (number + 1) % hf["no_rope_layer_interval"] for number in layers
    ]
    rope = rope_from_hf(hf, context, theta=2000000.0)
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    sliding = [window is not None and not rotates for rotates in rotated]
    changes = {
        "rope": None,
        "layer_ropes": tuple(rope if rotates else None for rotates in rotated),
        **windows_of(hf, sliding, window),
    }
    return merged(llama_fields(hf, context), {"attention": changes})


def _write_smollm3(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    attention = config.attention
    layer_ropes = attention.layer_ropes or ()
    ropes = {} if not attention.ropes else rope_to_hf(attention.ropes[0], original)
    return {
        **write_llama(config, original),
        **_qwen_windows_to_hf(config),
        **ropes,
        "no_rope_layers": [int(rope is not None) for rope in layer_ropes],
    }


def _phi3_rows(config: ModelConfig) -> tuple[Row, ...]:
    # Phi-3 fuses q, k and v, and gate and up; grouped heads make k and v narrower than q.
    attention, middle = config.attention, config.mlp.intermediate_size
    q, kv = (n * attention.head_dim for n in (attention.num_heads, attention.num_kv_heads))
    layer = "model.layers.{i}"
    return with_rows(
        llama_rows(config),
        *fused("attention", {"q": q, "k": kv, "v": kv}, f"{layer}.self_attn.qkv_proj"),
        *fused("mlp", {"gate": middle, "up": middle}, f"{layer}.mlp.gate_up_proj"),
    )


def _read_phi3(hf: HfConfig, context: int | None) -> Fields:
    # Phi-3's first checkpoints call longrope "su" or "yarn".
    scaling = dict(hf.get("rope_scaling") or {})
    for key in ("type", "rope_type"):
        if scaling.get(key) in ("su", "yarn"):
            scaling[key] = "longrope"
    hf = {**hf, "rope_scaling": scaling or None}
    rope = rope_from_hf(hf, context, partial=1.0)
    return merged(read_mistral({**hf, **_FULL}, context), {"attention": {"rope": rope}})


# What Mistral's reader is given in place of Phi-3's rotation, which it does not know.
_FULL = {"rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": None}


def _write_phi3(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = write_mistral(config, original)
    rope = config.attention.rope
    if rope is not None and isinstance(rope.scaling, LongScaling):
        # On the Hub this field stands beside rope_scaling, not in it.
        written["original_max_position_embeddings"] = rope.scaling.original_max_positions
        lists = {
            "short_factor": list(rope.scaling.short_factors),
            "long_factor": list(rope.scaling.long_factors),
        }
        if not written["rope_scaling"].keys() - {*lists, *_LONG_FIELDS}:
            # Before transformers 5 Phi-3 knew these keys and refused any other.
            written["rope_scaling"] = {"type": "longrope", **lists}
    return written


_LONG_FIELDS = ("rope_type", "type", "original_max_position_embeddings")


def _read_seed_oss(hf: HfConfig, context: int | None) -> Fields:
    changes = {"attention": {"output_bias": hf["attention_out_bias"]}}
    return merged(llama_fields(hf, context), changes)


def _write_seed_oss(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    return {
        **write_llama(config, original),
        "attention_out_bias": config.attention.output_bias,
    }


def _read_arcee(hf: HfConfig, context: int | None) -> Fields:
    return merged(llama_fields(hf, context), {"mlp": {"gated": False}})


def _hunyuan_rows(config: ModelConfig) -> tuple[Row, ...]:
    attention = "model.layers.{i}.self_attn"
    return with_rows(
        llama_rows(config),
        Row("layers/attention/q_norm/scale", f"{attention}.query_layernorm.weight"),
        Row("layers/attention/k_norm/scale", f"{attention}.key_layernorm.weight"),
    )


def _read_hunyuan(hf: HfConfig, context: int | None) -> Fields:
    rope = joined_fields(hf)
    if rope.get("rope_type") == "dynamic" and rope.get("alpha"):
        # Not by the length of a sequence, as the name says, but one larger θ for all: that of "NTK
        # aware" scaling by alpha. None of the other fields is read.
        channels = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
        theta = rope.get("rope_theta", 10000.0) * rope["alpha"] ** (channels / (channels - 2))
        hf = {**hf, **_FULL, "rope_theta": theta}
    # Queries and keys are rotated first and normed then, unlike in Qwen3.
    changes = {"attention": {"qk_norm": "head-rotated"}, "mlp": {"bias": False}}
    return merged(llama_fields(hf, context), changes)


def _write_hunyuan(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = {**sizes_to_hf(config, original), "attention_bias": config.attention.qkv_bias}
    # Where the original's alpha says this θ, its own fields are kept.
    if joined_fields(original).get("alpha"):
        read = _read_hunyuan({**LLAMA_DEFAULTS, **original}, None)["attention"]["rope"]
        if read == config.attention.rope:
            written |= both_spellings({"rope_theta": 10000.0, **joined_fields(original)})
    return written


QWEN_DEFAULTS = {
    **LLAMA_DEFAULTS,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

LLAMA_FAMILIES = (
    Family(
        "llama", "LlamaForCausalLM", llama_rows, llama_fields, write_llama,
        defaults=LLAMA_DEFAULTS,
        only=LLAMA_ONLY,
    ),
    Family(
        "mistral", "MistralForCausalLM", llama_rows, read_mistral, write_mistral,
        defaults={**LLAMA_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
        only={**LLAMA_ONLY, "layer_types": (None,)},
    ),
    Family(
        "qwen2", "Qwen2ForCausalLM", llama_rows, _read_qwen2, _write_qwen2,
        defaults=QWEN_DEFAULTS,
        only=LLAMA_ONLY,
    ),
    Family(
        "qwen3", "Qwen3ForCausalLM",
        lambda config: llama_rows(config) + QK_NORM_ROWS,
        _read_qwen3, _write_qwen3,
        defaults={**QWEN_DEFAULTS, "head_dim": 128},
        only=LLAMA_ONLY,
    ),
    Family(
        "smollm3", "SmolLM3ForCausalLM", llama_rows, _read_smollm3, _write_smollm3,
        defaults={
            **LLAMA_DEFAULTS,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "sliding_window": None,
        },
        only=LLAMA_ONLY,
    ),
    Family(
        "phi3", "Phi3ForCausalLM", _phi3_rows, _read_phi3, _write_phi3,
        defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "sliding_window": None},
        only=LLAMA_ONLY,
    ),
    Family(
        "seed_oss", "SeedOssForCausalLM", llama_rows, _read_seed_oss, _write_seed_oss,
        defaults={
            **LLAMA_DEFAULTS,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_bias": True,
            "attention_out_bias": False,
        },
        only=LLAMA_ONLY,
    ),
    Family(
        "arcee", "ArceeForCausalLM",
        lambda config: with_rows(llama_rows(config), without=("layers/mlp/gate",)),
        _read_arcee, write_llama,
        defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "hidden_act": "relu2"},
        only=LLAMA_ONLY,
    ),
    Family(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", _hunyuan_rows,
        _read_hunyuan, _write_hunyuan,
        defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
        only=LLAMA_ONLY,
    ),
)  # fmt: skip

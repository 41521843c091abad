"""OLMo 2 and 3 and EXAONE 4: no norms before attention and MLP, but after them."""

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
from jaxdpo.hub.families.row import Row
from jaxdpo.hub.rope import (
    layer_ropes_from_hf,
    layer_ropes_to_hf,
    rope_from_hf,
    rope_to_hf,
)
from jaxdpo.model.config import ModelConfig

_THETAS = {"full_attention": 500000.0, "sliding_attention": 500000.0}


def _post_norm_rows(config: ModelConfig) -> tuple[Row, ...]:
    layer = "model.layers.{i}"
    return with_rows(
        llama_rows(config),
        Row("layers/attention_post_norm/scale", f"{layer}.post_attention_layernorm.weight"),
        Row("layers/mlp_post_norm/scale", f"{layer}.post_feedforward_layernorm.weight"),
        *QK_NORM_ROWS,
        without=("layers/attention_norm", "layers/mlp_norm"),
    )


def _read_olmo2(hf: HfConfig, context: int | None) -> Fields:
    # "flat": the norm is over all heads of q, or of k, together. "rms-fp32": OLMo scales before it
    # rounds, Llama after.
    changes = {
        "attention": {"qk_norm": "flat"},
        "mlp": {"bias": False},
        "norm": {"kind": "rms-fp32", "before": False, "after": True},
    }
    return merged(llama_fields(hf, context), changes)


def _write_olmo2(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    return {**sizes_to_hf(config, original), "attention_bias": config.attention.qkv_bias}


def _read_olmo3(hf: HfConfig, context: int | None) -> Fields:
    layers = hf["num_hidden_layers"]
    # Every fourth layer sees everything, and only those layers' positions are stretched (YaRN).
    windows = windows_of(hf, [(n + 1) % 4 != 0 for n in range(layers)], hf["sliding_window"])
    by_type = layer_ropes_from_hf(hf, _THETAS, context, local="rope_theta")
    full, sliding = by_type["full_attention"], by_type["sliding_attention"]
    each = windows["windows"] or (None,) * layers
    changes = {
        **windows,
        "rope": None,
        "layer_ropes": tuple(full if window is None else sliding for window in each),
    }
    # Read already, by type of layer; OLMo 2's reader would take one rotation for all.
    plain = {**hf, "rope_parameters": None, "rope_scaling": None, "rope_theta": None}
    return merged(_read_olmo2(plain, context), {"attention": changes})


def _write_olmo3(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    ropes = layer_ropes_to_hf(config.attention, original, _THETAS, local="rope_theta")
    return {**_write_olmo2(config, original), **windows_to_hf(config), **ropes}


def _read_exaone4(hf: HfConfig, context: int | None) -> Fields:
    layers, window = hf["num_hidden_layers"], hf["sliding_window"]
    pattern = hf["sliding_window_pattern"]
    # The published files have "LLLG" here, beside a list of layers' types that says the same.
    by_number = window is not None and not hf.get("layer_types")
    sliding = [by_number and (n + 1) % pattern != 0 for n in range(layers)]
    windows = windows_of(hf, sliding, window)
    changes = {**windows, "qk_norm": "head"}
    if window is not None:
        # With windows, the layers that see everything have no positions.
        rope = rope_from_hf(hf, context)
        each = windows["windows"] or (None,) * layers
        ropes = tuple(None if one is None else rope for one in each)
        changes |= {"rope": None, "layer_ropes": ropes}
    # Unlike OLMo, it rounds a norm before it scales, and norms each head by itself.
    fields = {
        "attention": changes,
        "mlp": {"bias": False},
        "norm": {"before": False, "after": True},
    }
    return merged(llama_fields(hf, context), fields)


def _write_exaone4(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    attention = config.attention
    written = {**sizes_to_hf(config, original), **windows_to_hf(config)}
    if attention.layer_ropes is None:
        return {**written, "sliding_window": None}
    ropes = {} if not attention.ropes else rope_to_hf(attention.ropes[0], original)
    # A number here, even where no layer has a window, says that full layers have no positions.
    window = written.get("sliding_window") or original.get("sliding_window") or 4096
    return {**written, **ropes, "sliding_window": window}


_DEFAULTS = {**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5}

OLMO_FAMILIES = (
    Family(
        "olmo2", "Olmo2ForCausalLM", _post_norm_rows, _read_olmo2, _write_olmo2,
        defaults=_DEFAULTS,
        only=LLAMA_ONLY,
    ),
    Family(
        "olmo3", "Olmo3ForCausalLM", _post_norm_rows, _read_olmo3, _write_olmo3,
        defaults={**_DEFAULTS, "sliding_window": 4096},
        only=LLAMA_ONLY,
    ),
    Family(
        "exaone4", "Exaone4ForCausalLM", _post_norm_rows, _read_exaone4, _write_exaone4,
        defaults={
            **_DEFAULTS,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        only=LLAMA_ONLY,
    ),
)  # fmt: skip

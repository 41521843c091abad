"""Nemotron and Minitron: LayerNorm with 1 + scale, squared ReLU without a gate."""

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
    with_rows,
)
from jaxdpo.hub.families.interleaved import share_to_hf
from jaxdpo.hub.families.llama import write_llama
from jaxdpo.hub.families.row import Row
from jaxdpo.model.config import ModelConfig


def _rows(config: ModelConfig) -> tuple[Row, ...]:
    layer = "model.layers.{i}"
    return with_rows(
        llama_rows(config),
        Row("norm/bias", "model.norm.bias"),
        Row("layers/attention_norm/bias", f"{layer}.input_layernorm.bias"),
        Row("layers/mlp_norm/bias", f"{layer}.post_attention_layernorm.bias"),
        without=("layers/mlp/gate",),
    )


def _read(hf: HfConfig, context: int | None) -> Fields:
    changes = {"mlp": {"gated": False}, "norm": {"kind": "layer-plus-one"}}
    return merged(llama_fields(hf, context, partial=0.5), changes)


def _write(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = write_llama(config, original)
    written["norm_eps"] = written.pop("rms_norm_eps")
    return {**written, **share_to_hf(config)}


NEMOTRON = Family(
    "nemotron", "NemotronForCausalLM", _rows, _read, _write,
    defaults={**LLAMA_DEFAULTS, "norm_eps": 1e-5, "hidden_act": "relu2"},
    names={"rms_norm_eps": "norm_eps"},
    only=LLAMA_ONLY,
)  # fmt: skip

"""Granite 3, and Granite 4 where all of its layers are attention."""

from typing import Any

from jaxdpo.errors import UserError
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
    with_rows,
)
from jaxdpo.hub.families.llama import write_llama
from jaxdpo.hub.families.row import Row, fused
from jaxdpo.model.config import ModelConfig


def _read_granite(hf: HfConfig, context: int | None) -> Fields:
    return llama_fields(hf, context) | {
        "attention": {
            **llama_fields(hf, context)["attention"],
            "scale": hf["attention_multiplier"],
        },
        # Granite's four multipliers are those of maximal update parametrisation.
        "embed_scale": hf["embedding_multiplier"],
        "residual_scale": hf["residual_multiplier"],
        "logit_scale": 1 / hf["logits_scaling"],
    }


def _write_granite(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    return {**write_llama(config, original), **_multipliers(config)}


def _multipliers(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention_multiplier": config.attention.scale,
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        # 1 / (1 / 49) is a little more than 49.
        "logits_scaling": float(f"{1 / config.logit_scale:.15g}"),
    }


def _hybrid_rows(config: ModelConfig) -> tuple[Row, ...]:
    middle, mlp = config.mlp.intermediate_size, "model.layers.{i}.shared_mlp"
    return with_rows(
        llama_rows(config),
        *fused("mlp", {"gate": middle, "up": middle}, f"{mlp}.input_linear"),
        Row("layers/mlp/down/kernel", f"{mlp}.output_linear.weight", transposed=True),
        without=("layers/mlp/down/bias",),
    )


def _read_hybrid(hf: HfConfig, context: int | None) -> Fields:
    if hf["num_local_experts"]:
        raise UserError(
            f"config.json: num_local_experts {hf['num_local_experts']} is not implemented for "
            "granitemoehybrid, only models without experts"
        )
    # transformers 5 has other names for the kinds of layers than the files on the Hub.
    types = set(hf.get("layer_types") or hf.get("layers_block_type") or ["mamba"])
    if types - {"attention", "full_attention"}:
        raise UserError(
            f"config.json: layer_types has {', '.join(sorted(types))}; only models whose layers "
            "are all attention are implemented"
        )
    # The MLP that stands beside the experts, where there are any, stands alone here.
    plain = {**hf, "intermediate_size": hf["shared_intermediate_size"], "mlp_bias": False}
    fields = _read_granite(plain, context)
    if hf["position_embedding_type"] != "rope":
        return merged(fields, {"attention": {"rope": None}})
    return fields


def _write_hybrid(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = {
        **sizes_to_hf(config, original),
        **_multipliers(config),
        "attention_bias": config.attention.qkv_bias,
        "shared_intermediate_size": config.mlp.intermediate_size,
        "num_local_experts": 0,
        "position_embedding_type": _positions_to_hf(config, original),
        "layer_types": original.get("layer_types") or ["full_attention"] * config.num_layers,
    }
    if "mamba_n_heads" not in original:
        # transformers checks the sizes of recurrent layers even where there are none; one head
        # fits every width.
        written["mamba_n_heads"] = 1
    # That of the experts, of which there are none.
    middle = original.get("intermediate_size", config.mlp.intermediate_size)
    return {**written, "intermediate_size": middle}


def _positions_to_hf(config: ModelConfig, original: HfConfig) -> str | None:
    if config.attention.rope is not None:
        return "rope"
    # Published files without positions say "nope", transformers None.
    return "nope" if original.get("position_embedding_type") == "nope" else None


_DEFAULTS = {
    **LLAMA_DEFAULTS,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}

GRANITE_FAMILIES = (
    Family(
        "granite", "GraniteForCausalLM", llama_rows, _read_granite, _write_granite,
        defaults=_DEFAULTS,
        only=LLAMA_ONLY,
    ),
    Family(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", _hybrid_rows,
        _read_hybrid, _write_hybrid,
        defaults={
            **_DEFAULTS,
            "num_local_experts": 8,
            "shared_intermediate_size": 1024,
            "intermediate_size": 11008,
            "position_embedding_type": None,
        },
        only={**LLAMA_ONLY, "position_embedding_type": ("rope", "nope")},
    ),
)  # fmt: skip

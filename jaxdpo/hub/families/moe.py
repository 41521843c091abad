"""Mixtures of experts: Mixtral and Qwen3-MoE."""

from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.hub.families.family import (
    LLAMA_DEFAULTS,
    LLAMA_ONLY,
    QK_NORM_ROWS,
    Family,
    Fields,
    HfConfig,
    llama_rows,
    merged,
    with_rows,
)
from jaxdpo.hub.families.llama import read_mistral, write_mistral
from jaxdpo.hub.families.row import Row
from jaxdpo.model.config import ExpertsConfig, ModelConfig


def _rows(config: ModelConfig, block: str, names: dict[str, str]) -> tuple[Row, ...]:
    """Returns Llama's table with experts, in the names of the files on the Hub.

    Args:
      config: Architecture.
      block: Name of the part of a layer that holds router and experts.
      names: Name of each of an expert's linear maps ↦ its name in the files.
    """
    layer = f"model.layers.{{i}}.{block}"
    return with_rows(
        llama_rows(config),
        Row("layers/mlp/router/weight", f"{layer}.gate.weight", transposed=True),
        *(
            Row(
                f"layers/mlp/experts/{name}/kernel",
                f"{layer}.experts.{{e}}.{hf_name}.weight",
                transposed=True,
            )
            for name, hf_name in names.items()
        ),
        # The experts take the place of the one MLP.
        without=("layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"),
    )


def _mixtral_rows(config: ModelConfig) -> tuple[Row, ...]:
    # Llama's original names: w1 and w3 side by side, w2 back to the residual stream's width.
    return _rows(config, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})


def _qwen3_rows(config: ModelConfig) -> tuple[Row, ...]:
    names = {name: f"{name}_proj" for name in ("gate", "up", "down")}
    return _rows(config, "mlp", names) + QK_NORM_ROWS


def _read_mixtral(hf: HfConfig, context: int | None) -> Fields:
    experts = {
        "num_experts": hf["num_local_experts"],
        "per_token": hf["num_experts_per_tok"],
        "router_loss": hf["router_aux_loss_coef"],
    }
    return merged(read_mistral(hf, context, theta=1000000.0), {"mlp": {"experts": experts}})


def _experts(config: ModelConfig) -> ExpertsConfig:
    if config.mlp.experts is None:
        raise UserError("this family has experts, but the model has none")
    return config.mlp.experts


def _write_mixtral(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    experts = _experts(config)
    return {
        **write_mistral(config, original),
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "router_aux_loss_coef": experts.router_loss,
    }


def _read_qwen3_moe(hf: HfConfig, context: int | None) -> Fields:
    if hf["decoder_sparse_step"] != 1 or hf.get("mlp_only_layers"):
        raise UserError(
            "config.json: some layers have experts and some do not (decoder_sparse_step "
            f"{hf['decoder_sparse_step']}, mlp_only_layers {hf.get('mlp_only_layers')}); only "
            "models whose layers all have experts are implemented"
        )
    # Unlike Qwen3, the window is that of all layers.
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    fields = read_mistral({**hf, "sliding_window": window}, context)
    bias = hf["attention_bias"]
    # transformers 5 renamed the field; files on the Hub have the old name.
    count = hf.get("num_experts") or hf.get("num_local_experts")
    if not isinstance(count, int):
        raise UserError("config.json: num_experts is missing; it must be a number ≥ 1")
    experts = {
        "num_experts": count,
        "per_token": hf["num_experts_per_tok"],
        "normalized": hf["norm_topk_prob"],
        "router_loss": hf["router_aux_loss_coef"],
    }
    changes = {
        "attention": {"qkv_bias": bias, "output_bias": bias, "qk_norm": "head"},
        "mlp": {"intermediate_size": hf["moe_intermediate_size"], "experts": experts},
    }
    return merged(fields, changes)


def _write_qwen3_moe(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written, experts = write_mistral(config, original), _experts(config)
    if written["sliding_window"] is None:
        # use_sliding_window says it; the Hub's configs keep a number here that nothing reads.
        del written["sliding_window"]
    # That of layers without experts, of which there are none.
    middle = original.get("intermediate_size", config.mlp.intermediate_size)
    name = "num_local_experts" if "num_local_experts" in original else "num_experts"
    return {
        **written,
        "use_sliding_window": config.attention.windows is not None,
        "attention_bias": config.attention.qkv_bias,
        "intermediate_size": middle,
        "moe_intermediate_size": config.mlp.intermediate_size,
        name: experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalized,
        "router_aux_loss_coef": experts.router_loss,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


MOE_FAMILIES = (
    Family(
        "mixtral", "MixtralForCausalLM", _mixtral_rows, _read_mixtral, _write_mixtral,
        defaults={
            **LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001,
        },
        only={**LLAMA_ONLY, "router_jitter_noise": (0, 0.0)},
    ),
    Family(
        "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_rows, _read_qwen3_moe, _write_qwen3_moe,
        defaults={
            **LLAMA_DEFAULTS,
            "num_key_value_heads": 4,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "router_aux_loss_coef": 0.001,
        },
        only=LLAMA_ONLY,
    ),
)  # fmt: skip

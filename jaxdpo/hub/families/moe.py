"""Mixtures of experts: Mixtral, Qwen2-MoE and Qwen3-MoE, OLMoE, GLM-4.5."""

from typing import Any

from jaxdpo.errors import UserError
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
from jaxdpo.hub.families.interleaved import share_to_hf
from jaxdpo.hub.families.llama import read_mistral, write_mistral
from jaxdpo.hub.families.row import Row, linear
from jaxdpo.model.config import ExpertsConfig, ModelConfig
from jaxdpo.model.groups import layers_with

_MLP = ("gate", "up", "down")
_NAMES = {name: f"{name}_proj" for name in _MLP}


def _rows(
    config: ModelConfig,
    block: str = "mlp",
    names: dict[str, str] = _NAMES,
    shared: str = "shared_expert",
) -> tuple[Row, ...]:
    """Returns Llama's table with experts, in the names of the files on the Hub.

    Args:
      config: Architecture.
      block: Name of the part of a layer that holds router and experts.
      names: Name of each of an expert's linear maps ↦ its name in the files.
      shared: Name of the MLP beside the experts.
    """
    experts, sparse = _experts(config), layers_with(config, "mlp")
    layer, router = f"model.layers.{{i}}.{block}", "layers/mlp/router"
    rows = [Row(f"{router}/weight", f"{layer}.gate.weight", transposed=True, layers=sparse)]
    if experts.correction:
        correction = f"{layer}.gate.e_score_correction_bias"
        rows.append(Row(f"{router}/correction", correction, layers=sparse))
    for name, hf_name in names.items():
        tensor = f"{layer}.experts.{{e}}.{hf_name}.weight"
        rows.append(Row(f"layers/mlp/experts/{name}/kernel", tensor, True, layers=sparse))
    if experts.shared is not None:
        for name in _MLP:
            rows += linear(f"mlp/shared/{name}", f"{layer}.{shared}.{name}_proj", sparse)
        if experts.shared.gated:
            path, tensor = "layers/mlp/shared_gate/weight", f"{layer}.{shared}_gate.weight"
            rows.append(Row(path, tensor, transposed=True, layers=sparse))
    if experts.dense is not None:
        # Layers without experts have Llama's names.
        for name in _MLP:
            mlp = f"model.layers.{{i}}.mlp.{name}_proj"
            rows += linear(f"dense_mlp/{name}", mlp, layers_with(config, "dense_mlp"))
    # The experts take the place of the one MLP.
    return with_rows(
        llama_rows(config),
        *rows,
        without=("layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"),
    )


def _experts(config: ModelConfig) -> ExpertsConfig:
    if config.mlp.experts is None:
        raise UserError("this family has experts, but the model has none")
    return config.mlp.experts


def _mixtral_rows(config: ModelConfig) -> tuple[Row, ...]:
    # Llama's original names: w1 and w3 side by side, w2 back to the residual stream's width.
    return _rows(config, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})


def _read_mixtral(hf: HfConfig, context: int | None) -> Fields:
    experts = {
        "num_experts": hf["num_local_experts"],
        "per_token": hf["num_experts_per_tok"],
        "router_loss": hf["router_aux_loss_coef"],
    }
    return merged(read_mistral(hf, context, theta=1000000.0), {"mlp": {"experts": experts}})


def _write_mixtral(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    experts = _experts(config)
    return {
        **write_mistral(config, original),
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "router_aux_loss_coef": experts.router_loss,
    }


def _num_experts(hf: HfConfig) -> int:
    # transformers 5 renamed the field; files on the Hub have the old name.
    count = hf.get("num_experts") or hf.get("num_local_experts")
    if not isinstance(count, int):
        raise UserError("config.json: num_experts is missing; it must be a number ≥ 1")
    return count


def _num_experts_to_hf(config: ModelConfig, original: HfConfig) -> dict[str, int]:
    name = "num_local_experts" if "num_local_experts" in original else "num_experts"
    return {name: _experts(config).num_experts}


def _qwen_dense(hf: HfConfig) -> list[int]:
    """Returns the layers without experts: those named, and all but every so many-th."""
    named, step = hf.get("mlp_only_layers") or (), hf["decoder_sparse_step"]
    layers = range(hf["num_hidden_layers"])
    return [number for number in layers if number in named or (number + 1) % step]


def _qwen_experts(hf: HfConfig) -> Fields:
    dense = _qwen_dense(hf)
    with_dense = {"layers": tuple(dense), "intermediate_size": hf["intermediate_size"]}
    return {
        "bias": False,
        "intermediate_size": hf["moe_intermediate_size"],
        "experts": {
            "num_experts": _num_experts(hf),
            "per_token": hf["num_experts_per_tok"],
            "normalized": hf["norm_topk_prob"],
            "router_loss": hf["router_aux_loss_coef"],
            "dense": with_dense if dense else None,
        },
    }


def _qwen_experts_to_hf(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    experts = _experts(config)
    written = {
        "moe_intermediate_size": config.mlp.intermediate_size,
        **_num_experts_to_hf(config, original),
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalized,
        "router_aux_loss_coef": experts.router_loss,
    }
    if experts.dense is None:
        # That of layers without experts, of which there are none.
        middle = original.get("intermediate_size", config.mlp.intermediate_size)
        return {
            **written, "intermediate_size": middle, "decoder_sparse_step": 1, "mlp_only_layers": []
        }  # fmt: skip
    written["intermediate_size"] = experts.dense.intermediate_size
    # The rule of the original where it names the same layers, else each by itself.
    rule = {"decoder_sparse_step": 1, **original, "num_hidden_layers": config.num_layers}
    if _qwen_dense(rule) != list(experts.dense.layers):
        rule |= {"decoder_sparse_step": 1, "mlp_only_layers": list(experts.dense.layers)}
    kept = {name: rule.get(name) for name in ("decoder_sparse_step", "mlp_only_layers")}
    return {**written, **kept, "mlp_only_layers": kept["mlp_only_layers"] or []}


def _read_qwen2_moe(hf: HfConfig, context: int | None) -> Fields:
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    # Every other one of the first layers, unlike in Qwen2 without experts.
    sliding = [
        window is not None and number % 2 == 0 and number < hf["max_window_layers"]
        for number in range(hf["num_hidden_layers"])
    ]
    bias = {"qkv_bias": hf["qkv_bias"], "output_bias": False}
    shared = {"intermediate_size": hf["shared_expert_intermediate_size"], "gated": True}
    changes = {
        "attention": {**bias, **windows_of(hf, sliding, window)},
        "mlp": merged(_qwen_experts(hf), {"experts": {"shared": shared}}),
    }
    return merged(llama_fields(hf, context), changes)


def _write_qwen2_moe(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    shared = _experts(config).shared
    return {
        **sizes_to_hf(config, original),
        **windows_to_hf(config),
        "use_sliding_window": config.attention.windows is not None,
        "qkv_bias": config.attention.qkv_bias,
        **_qwen_experts_to_hf(config, original),
        **({} if shared is None else {"shared_expert_intermediate_size": shared.intermediate_size}),
    }


def _read_qwen3_moe(hf: HfConfig, context: int | None) -> Fields:
    # Unlike Qwen3, the window is that of all layers.
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    bias = hf["attention_bias"]
    changes = {
        "attention": {"qkv_bias": bias, "output_bias": bias, "qk_norm": "head"},
        "mlp": _qwen_experts(hf),
    }
    return merged(read_mistral({**hf, "sliding_window": window}, context), changes)


def _write_qwen3_moe(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = write_mistral(config, original)
    if written["sliding_window"] is None:
        # use_sliding_window says it; the Hub's configs keep a number here that nothing reads.
        del written["sliding_window"]
    return {
        **written,
        "use_sliding_window": config.attention.windows is not None,
        "attention_bias": config.attention.qkv_bias,
        **_qwen_experts_to_hf(config, original),
    }


def _read_olmoe(hf: HfConfig, context: int | None) -> Fields:
    experts = {
        "num_experts": _num_experts(hf),
        "per_token": hf["num_experts_per_tok"],
        "normalized": hf["norm_topk_prob"],
        "router_loss": hf["router_aux_loss_coef"],
    }
    changes = {"attention": {"qk_norm": "flat"}, "mlp": {"bias": False, "experts": experts}}
    return merged(llama_fields(hf, context), changes)


def _write_olmoe(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    experts = _experts(config)
    return {
        **sizes_to_hf(config, original),
        "attention_bias": config.attention.qkv_bias,
        **_num_experts_to_hf(config, original),
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalized,
        "router_aux_loss_coef": experts.router_loss,
    }


def _glm4_moe_rows(config: ModelConfig) -> tuple[Row, ...]:
    normed = QK_NORM_ROWS if config.attention.qk_norm else ()
    return _rows(config, shared="shared_experts") + normed


def _read_glm4_moe(hf: HfConfig, context: int | None) -> Fields:
    middle = hf["moe_intermediate_size"]
    dense = tuple(range(min(hf["first_k_dense_replace"], hf["num_hidden_layers"])))
    with_dense = {"layers": dense, "intermediate_size": hf["intermediate_size"]}
    experts = {
        "num_experts": hf["n_routed_experts"],
        "per_token": hf["num_experts_per_tok"],
        "normalized": hf["norm_topk_prob"],
        "score": "sigmoid",
        "correction": True,
        "groups": hf["n_group"],
        "groups_per_token": hf["topk_group"],
        "scale": hf["routed_scaling_factor"],
        # Several shared experts are one of their size together.
        "shared": {"intermediate_size": middle * hf["n_shared_experts"]},
        "dense": with_dense if dense else None,
    }
    normed = "head" if hf["use_qk_norm"] else None
    changes = {
        "attention": {"output_bias": False, "qk_norm": normed},
        "mlp": {"bias": False, "intermediate_size": middle, "experts": experts},
    }
    return merged(llama_fields(hf, context, partial=0.5), changes)


def _write_glm4_moe(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    experts, middle = _experts(config), config.mlp.intermediate_size
    shared = experts.shared.intermediate_size if experts.shared else 0
    dense = experts.dense
    return {
        **sizes_to_hf(config, original),
        **share_to_hf(config),
        "attention_bias": config.attention.qkv_bias,
        "use_qk_norm": config.attention.qk_norm is not None,
        "intermediate_size": (
            dense.intermediate_size if dense else original.get("intermediate_size", middle)
        ),
        "moe_intermediate_size": middle,
        "n_routed_experts": experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalized,
        "n_group": experts.groups,
        "topk_group": experts.groups_per_token,
        "routed_scaling_factor": experts.scale,
        "n_shared_experts": shared // middle,
        "first_k_dense_replace": len(dense.layers) if dense else 0,
    }


_QWEN_DEFAULTS = {
    **LLAMA_DEFAULTS,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
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
        "qwen2_moe", "Qwen2MoeForCausalLM", _rows, _read_qwen2_moe, _write_qwen2_moe,
        defaults={
            **_QWEN_DEFAULTS,
            "num_key_value_heads": 16,
            "max_window_layers": 28,
            "qkv_bias": True,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
        },
        only=LLAMA_ONLY,
    ),
    Family(
        "qwen3_moe", "Qwen3MoeForCausalLM",
        lambda config: _rows(config) + QK_NORM_ROWS,
        _read_qwen3_moe, _write_qwen3_moe,
        defaults={
            **_QWEN_DEFAULTS,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
        },
        only=LLAMA_ONLY,
    ),
    Family(
        "olmoe", "OlmoeForCausalLM",
        lambda config: _rows(config) + QK_NORM_ROWS,
        _read_olmoe, _write_olmoe,
        defaults={
            **LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-5,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "router_aux_loss_coef": 0.01,
        },
        only={**LLAMA_ONLY, "clip_qkv": (None,)},
    ),
    Family(
        "glm4_moe", "Glm4MoeForCausalLM", _glm4_moe_rows, _read_glm4_moe, _write_glm4_moe,
        defaults={
            **LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": False,
        },
        only=LLAMA_ONLY,
    ),
)  # fmt: skip

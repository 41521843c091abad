"""GPT-2: LayerNorm, learned positions, no gate, biases throughout, several maps in one tensor."""

from typing import Any

from jaxdpo.hub.families.family import (
    LLAMA_ONLY,
    Family,
    Fields,
    HfConfig,
    activation,
    activation_to_hf,
)
from jaxdpo.hub.families.row import Row, fused
from jaxdpo.model.config import ModelConfig


def _rows(config: ModelConfig) -> tuple[Row, ...]:
    width = config.attention.num_heads * config.attention.head_dim
    layer = "transformer.h.{i}"

    def linear(path: str, hf_name: str) -> tuple[Row, Row]:
        # Conv1D keeps its kernel as [in, out], the same as here, so nothing is transposed.
        return (
            Row(f"layers/{path}/kernel", f"{layer}.{hf_name}.weight"),
            Row(f"layers/{path}/bias", f"{layer}.{hf_name}.bias"),
        )

    # c_attn holds q, k and v side by side along its outputs.
    qkv = {"q": width, "k": width, "v": width}
    norms = {"norm": "transformer.ln_f"}
    norms |= {"layers/attention_norm": f"{layer}.ln_1", "layers/mlp_norm": f"{layer}.ln_2"}
    return (
        Row("embed/weight", "transformer.wte.weight"),
        Row("positions/weight", "transformer.wpe.weight"),
        Row("head/kernel", "lm_head.weight", transposed=True),
        *(Row(f"{path}/scale", f"{hf_name}.weight") for path, hf_name in norms.items()),
        *(Row(f"{path}/bias", f"{hf_name}.bias") for path, hf_name in norms.items()),
        *fused("attention", qkv, f"{layer}.attn.c_attn", transposed=False),
        *linear("attention/o", "attn.c_proj"),
        *linear("mlp/up", "mlp.c_fc"),
        *linear("mlp/down", "mlp.c_proj"),
    )


def _read(hf: HfConfig, context: int | None) -> Fields:
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    return {
        "vocab_size": hf["vocab_size"],
        "hidden_size": width,
        "num_layers": hf["num_hidden_layers"],
        "learned_positions": hf["max_position_embeddings"],
        "attention": {
            "num_heads": heads,
            "num_kv_heads": heads,
            "head_dim": width // heads,
            "qkv_bias": True,
            "output_bias": True,
            # None is the usual 1 / √head_dim; without it the scores are not scaled at all.
            "scale": None if hf["scale_attn_weights"] else 1.0,
            "rope": None,
        },
        "mlp": {
            "intermediate_size": hf.get("n_inner") or 4 * width,
            "bias": True,
            "gated": False,
            "activation": activation(hf, "activation_function"),
        },
        "norm": {"kind": "layer", "eps": hf["layer_norm_epsilon"]},
        "tied_head": hf["tie_word_embeddings"],
    }


def _write(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    middle = config.mlp.intermediate_size
    # A config that leaves n_inner out means four times the width.
    default = original.get("n_inner") is None and middle == 4 * config.hidden_size
    act = activation_to_hf(config, original, "activation_function")
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.attention.num_heads,
        "n_inner": None if default else middle,
        "n_positions": config.learned_positions,
        "scale_attn_weights": config.attention.scale is None,
        "activation_function": "gelu_new" if act == "gelu_pytorch_tanh" else act,
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.tied_head,
    }


GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", _rows, _read, _write,
    defaults={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    only={
        **LLAMA_ONLY,
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    names={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    prefix="transformer.",
)  # fmt: skip

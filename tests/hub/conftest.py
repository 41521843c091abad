"""Tiny random torch models of every family, saved as transformers saves them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    Cohere2Config,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GPT2Config,
    GraniteConfig,
    GraniteMoeHybridConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from jaxdpo.data.packing.batch import PackedBatch

LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE: dict[str, Any] = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

# Keyword arguments of many types for configuration classes of transformers.
Fields = dict[str, Any]
SIZES: Fields = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
)
# Sequences of the tests are 40 tokens: longer than each window and each original context.
DYNAMIC_ROPE: Fields = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
YARN_ROPE: Fields = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONG_ROPE: Fields = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.0, 4.0],
}
MOE: Fields = dict(num_experts_per_tok=2, router_aux_loss_coef=0.02)


def _sizes(**changes: Any) -> Fields:
    return {**SIZES, **changes}


def _gemma(**changes: Any) -> Fields:
    return _sizes(
        num_hidden_layers=4, head_dim=10, num_key_value_heads=2, pad_token_id=None,
        query_pre_attn_scalar=24, sliding_window=6,
    ) | changes  # fmt: skip


# Sequences of the tests are 40 tokens: longer than each window and each original context. The
# first config of a family stands for it where all would be too many.
FAMILY_CONFIGS: dict[str, dict[str, PretrainedConfig]] = {
    "llama": {
        "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
        "llama-biases-linear-rope": LlamaConfig(
            **SIZES, num_key_value_heads=4, attention_bias=True, mlp_bias=True,
            max_position_embeddings=16, rope_parameters=LINEAR_ROPE, rms_norm_eps=1e-3,
        ),
        "llama3-tied-one-kv-head": LlamaConfig(
            **SIZES, num_key_value_heads=1, head_dim=12, tie_word_embeddings=True,
            max_position_embeddings=128, rope_parameters=LLAMA3_ROPE,
        ),
        "llama-dynamic": LlamaConfig(
            **SIZES, num_key_value_heads=2, max_position_embeddings=16,
            rope_parameters=DYNAMIC_ROPE,
        ),
        "llama-yarn": LlamaConfig(
            **SIZES, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
            rope_parameters={**YARN_ROPE, "mscale": 1.2, "mscale_all_dim": 0.7, "beta_fast": 4.0},
            hidden_act="gelu",
        ),
    },
    "mistral": {
        "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=7, head_dim=10),
        "mistral-no-window": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    },
    "qwen2": {
        "qwen2-windows-tied": Qwen2Config(
            **SIZES, num_key_value_heads=4, use_sliding_window=True, sliding_window=5,
            max_window_layers=1, tie_word_embeddings=True,
        ),
        "qwen2": Qwen2Config(
            **SIZES, num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        ),
        "qwen2-yarn": Qwen2Config(
            **SIZES, num_key_value_heads=2, max_position_embeddings=16, rope_parameters=YARN_ROPE,
        ),
    },
    "qwen3": {
        "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12),
        "qwen3-biases-windows": Qwen3Config(
            **SIZES, num_key_value_heads=1, head_dim=6, attention_bias=True,
            use_sliding_window=True, sliding_window=9, max_window_layers=2,
            tie_word_embeddings=True, rope_parameters=YARN_ROPE,
        ),
    },
    "smollm3": {
        "smollm3": SmolLM3Config(
            **SIZES, num_key_value_heads=2, no_rope_layers=[1, 0, 1], pad_token_id=None,
            use_sliding_window=True, sliding_window=6,
        ),
        "smollm3-untied": SmolLM3Config(
            **_sizes(num_hidden_layers=4), num_key_value_heads=4, attention_bias=True,
            mlp_bias=True, tie_word_embeddings=False, pad_token_id=None,
        ),
    },
    "granite": {
        "granite": GraniteConfig(
            **SIZES, num_key_value_heads=2, attention_multiplier=0.2, embedding_multiplier=5.0,
            residual_multiplier=0.4, logits_scaling=4.9,
        ),
        "granite-tied": GraniteConfig(
            **SIZES, num_key_value_heads=4, attention_multiplier=0.5, logits_scaling=49.0,
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        ),
    },
    "phi3": {
        "phi3-short": Phi3Config(
            **SIZES, num_key_value_heads=4, pad_token_id=None, max_position_embeddings=256,
            original_max_position_embeddings=64, tie_word_embeddings=True, sliding_window=11,
            rope_parameters={**LONG_ROPE, "partial_rotary_factor": 0.75},
        ),
        "phi3-long": Phi3Config(
            **SIZES, num_key_value_heads=2, pad_token_id=None, max_position_embeddings=64,
            original_max_position_embeddings=16,
            rope_parameters={**LONG_ROPE, "partial_rotary_factor": 0.75},
        ),
        "phi3-plain": Phi3Config(**SIZES, num_key_value_heads=1, pad_token_id=None),
    },
    "gemma": {
        "gemma": GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=14, pad_token_id=None),
        "gemma-biased": GemmaConfig(
            **SIZES, num_key_value_heads=4, head_dim=8, attention_bias=True, hidden_act="gelu",
        ),
    },
    "gemma2": {
        "gemma2": Gemma2Config(**_gemma(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
        "gemma2-no-caps": Gemma2Config(
            **_gemma(attn_logit_softcapping=None, final_logit_softcapping=None)
        ),
    },
    "gemma3_text": {
        "gemma3": Gemma3TextConfig(
            **_gemma(layer_types=["sliding_attention", "full_attention"] * 2),
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            },
        ),
        "gemma3-pattern": Gemma3TextConfig(
            **_gemma(num_hidden_layers=7, final_logit_softcapping=4.0),
        ),
    },
    "olmo2": {
        "olmo2": Olmo2Config(**SIZES, num_key_value_heads=2, pad_token_id=None),
        "olmo2-biased": Olmo2Config(
            **SIZES, num_key_value_heads=4, pad_token_id=None, attention_bias=True,
            tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE,
        ),
    },
    "olmo3": {
        "olmo3": Olmo3Config(
            **_sizes(num_hidden_layers=4), num_key_value_heads=2, pad_token_id=None,
            sliding_window=6, max_position_embeddings=64,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {**YARN_ROPE, "rope_theta": 1e3},
            },
        ),
        "olmo3-default": Olmo3Config(**SIZES, pad_token_id=None, sliding_window=8),
    },
    "gpt2": {
        "gpt2": GPT2Config(
            vocab_size=64, n_positions=48, n_embd=36, n_layer=3, n_head=4, n_inner=40
        ),
        "gpt2-untied": GPT2Config(
            vocab_size=64, n_positions=40, n_embd=32, n_layer=2, n_head=2,
            activation_function="gelu", scale_attn_weights=False, tie_word_embeddings=False,
        ),
    },
    "ministral3": {
        "ministral3": Ministral3Config(
            **SIZES, num_key_value_heads=2, head_dim=10, pad_token_id=None,
            max_position_embeddings=64,
            rope_parameters={
                **YARN_ROPE, "original_max_position_embeddings": 7, "llama_4_scaling_beta": 0.3,
                "mscale": 1.0, "mscale_all_dim": 1.0,
            },
        ),
        "ministral3-windows": Ministral3Config(
            **SIZES, num_key_value_heads=4, head_dim=8, pad_token_id=None, sliding_window=9,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 16,
            },
        ),
    },
    "seed_oss": {
        "seed-oss": SeedOssConfig(
            **SIZES, num_key_value_heads=2, head_dim=10, pad_token_id=None,
            attention_out_bias=False,
        ),
        "seed-oss-biased": SeedOssConfig(
            **SIZES, num_key_value_heads=4, head_dim=8, pad_token_id=None, attention_bias=False,
            attention_out_bias=True, mlp_bias=True, tie_word_embeddings=True,
        ),
    },
    "arcee": {
        "arcee": ArceeConfig(
            **SIZES, num_key_value_heads=2, max_position_embeddings=64, head_dim=6,
            rope_parameters=YARN_ROPE,
        ),
        "arcee-biased": ArceeConfig(**SIZES, attention_bias=True, mlp_bias=True, hidden_act="silu"),
    },
    "hunyuan_v1_dense": {
        "hunyuan-alpha": HunYuanDenseV1Config(
            **SIZES, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "dynamic", "rope_theta": 1e4, "alpha": 100.0, "factor": 1.0,
                "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
            },
        ),
        "hunyuan": HunYuanDenseV1Config(**SIZES, head_dim=8, attention_bias=True),
    },
    "glm4": {
        "glm4": Glm4Config(
            **SIZES, num_key_value_heads=2, head_dim=12, pad_token_id=None, eos_token_id=9,
        ),
        "glm4-unbiased": Glm4Config(
            **SIZES, num_key_value_heads=1, head_dim=8, pad_token_id=None, attention_bias=False,
            tie_word_embeddings=True, eos_token_id=9,
            rope_parameters={"rope_type": "default", "rope_theta": 1e3,
                             "partial_rotary_factor": 0.25},
        ),
    },
    "ernie4_5": {
        "ernie": Ernie4_5Config(
            **SIZES, num_key_value_heads=2, head_dim=10, tie_word_embeddings=True,
        ),
        "ernie-biased": Ernie4_5Config(
            **SIZES, num_key_value_heads=4, head_dim=8, use_bias=True, tie_word_embeddings=False,
        ),
    },
    "cohere2": {
        "cohere2": Cohere2Config(
            **_sizes(num_hidden_layers=4), num_key_value_heads=2, sliding_window=6,
            eos_token_id=9, bos_token_id=8, logit_scale=0.3,
        ),
        "cohere2-biased": Cohere2Config(
            **SIZES, num_key_value_heads=1, sliding_window=5, attention_bias=True,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            tie_word_embeddings=False, eos_token_id=9, bos_token_id=8,
        ),
    },
    "exaone4": {
        "exaone4": Exaone4Config(
            **_sizes(num_hidden_layers=4), num_key_value_heads=2, sliding_window=6,
        ),
        "exaone4-no-windows": Exaone4Config(
            **SIZES, num_key_value_heads=4, sliding_window=None, tie_word_embeddings=True,
            layer_types=["full_attention"] * 3,
        ),
    },
    "nemotron": {
        "nemotron": NemotronConfig(**SIZES, num_key_value_heads=2, head_dim=12),
        "nemotron-biased": NemotronConfig(
            **_sizes(partial_rotary_factor=0.25), num_key_value_heads=4, attention_bias=True,
            mlp_bias=True, tie_word_embeddings=True,
        ),
    },
    "granitemoehybrid": {
        "granite-hybrid": GraniteMoeHybridConfig(
            **SIZES, num_key_value_heads=2, num_local_experts=0, shared_intermediate_size=40,
            position_embedding_type="rope", layer_types=["full_attention"] * 3,
            attention_multiplier=0.2, embedding_multiplier=5.0, residual_multiplier=0.4,
            logits_scaling=4.9, mamba_n_heads=4,
        ),
        "granite-hybrid-no-positions": GraniteMoeHybridConfig(
            **SIZES, num_key_value_heads=4, num_local_experts=0, attention_bias=True,
            layer_types=["full_attention"] * 3, tie_word_embeddings=True, mamba_n_heads=4,
        ),
    },
    "mixtral": {
        "mixtral": MixtralConfig(
            **SIZES, **MOE, num_key_value_heads=2, num_local_experts=5, sliding_window=9,
        ),
        "mixtral-tied": MixtralConfig(
            **SIZES, num_key_value_heads=4, num_local_experts=3, num_experts_per_tok=1,
            tie_word_embeddings=True,
        ),
    },
    "qwen3_moe": {
        "qwen3-moe": Qwen3MoeConfig(
            **_sizes(head_dim=12), **MOE, num_key_value_heads=2, num_experts=6,
            moe_intermediate_size=20, norm_topk_prob=True,
        ),
        "qwen3-moe-windows": Qwen3MoeConfig(
            **SIZES, num_key_value_heads=4, num_experts=4, num_experts_per_tok=3,
            moe_intermediate_size=24, norm_topk_prob=False, attention_bias=True,
            use_sliding_window=True, sliding_window=7,
        ),
        "qwen3-moe-dense-layers": Qwen3MoeConfig(
            **_sizes(num_hidden_layers=5, head_dim=8), **MOE, num_key_value_heads=2, num_experts=4,
            moe_intermediate_size=20, decoder_sparse_step=2, mlp_only_layers=[3],
            tie_word_embeddings=True,
        ),
    },
    "qwen2_moe": {
        "qwen2-moe": Qwen2MoeConfig(
            **SIZES, **MOE, num_key_value_heads=2, num_experts=5, moe_intermediate_size=20,
            shared_expert_intermediate_size=28, mlp_only_layers=[1],
        ),
        "qwen2-moe-windows": Qwen2MoeConfig(
            **SIZES, **MOE, num_key_value_heads=4, num_experts=4, moe_intermediate_size=24,
            shared_expert_intermediate_size=12, qkv_bias=False, norm_topk_prob=True,
            use_sliding_window=True, sliding_window=7, max_window_layers=2,
            tie_word_embeddings=True,
        ),
    },
    "olmoe": {
        "olmoe": OlmoeConfig(
            **SIZES, **MOE, num_key_value_heads=2, num_experts=6, pad_token_id=None,
        ),
        "olmoe-biased": OlmoeConfig(
            **SIZES, **MOE, num_experts=3, norm_topk_prob=True, attention_bias=True,
            pad_token_id=None, tie_word_embeddings=True,
        ),
    },
    "glm4_moe": {
        "glm4-moe": Glm4MoeConfig(
            **_sizes(num_hidden_layers=4, head_dim=12), num_key_value_heads=2,
            moe_intermediate_size=20, n_routed_experts=6, num_experts_per_tok=2, n_group=3,
            topk_group=2, routed_scaling_factor=1.5, first_k_dense_replace=1, use_qk_norm=True,
        ),
        "glm4-moe-unnormed": Glm4MoeConfig(
            **SIZES, num_key_value_heads=4, moe_intermediate_size=12, n_routed_experts=4,
            num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=2,
            norm_topk_prob=False, attention_bias=True,
        ),
    },
}  # fmt: skip
CONFIGS = {name: config for family in FAMILY_CONFIGS.values() for name, config in family.items()}
REPRESENTATIVES = [next(iter(family)) for family in FAMILY_CONFIGS.values()]
# One config of every family and every kind of rotation; all of them:
# JAXDPO_TEST_FAMILIES=all python -m pytest tests/hub
EVERYTHING = os.environ.get("JAXDPO_TEST_FAMILIES") == "all"
MORE_ROTATIONS = ["llama3-tied-one-kv-head", "llama-dynamic", "phi3-long"]
# Families that are made of what others are tried for: gradients, packing and sampling cost most.
MADE_OF_OTHERS = {"seed-oss", "arcee", "glm4", "ernie", "exaone4", "granite-hybrid", "olmoe"}
TRIED = list(CONFIGS) if EVERYTHING else [*REPRESENTATIVES, *MORE_ROTATIONS]


def whole_sequences(tokens_BT: np.ndarray) -> PackedBatch:
    """Lays out one sequence a row, for the dense attention, which needs no plan of tiles."""
    zeros = np.zeros_like(tokens_BT)
    positions = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    no_plan, length = None, tokens_BT.shape[1]
    rows = (tokens_BT, positions, zeros + 1, zeros, zeros + length, *(zeros,) * 5)
    packed: Any = (*rows, no_plan, no_plan)
    return PackedBatch(*packed)


@dataclass(frozen=True)
class TorchModel:
    """A model in torch, and the folder it was saved to."""

    torch_model: Any
    folder: Path


def make_torch_model(name: str, folder: Path) -> TorchModel:
    """Random weights large enough that norms, biases and attention all show."""
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    with torch.no_grad():
        # Routers' corrections are buffers, and are zero before any training.
        corrections = [one for name, one in model.named_buffers() if "correction" in name]
        for tensor in (*model.parameters(), *corrections):
            tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    return TorchModel(model, folder)


@pytest.fixture(scope="session", params=TRIED)
def each_model(request, tmp_path_factory) -> TorchModel:
    """The configs in turn."""
    return make_torch_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(
    scope="session",
    params=[name for name in REPRESENTATIVES if EVERYTHING or name not in MADE_OF_OTHERS],
)
def each_family(request, tmp_path_factory) -> TorchModel:
    """One config of every family, or of every kind."""
    return make_torch_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> TorchModel:
    """The plain Llama: untied, grouped heads."""
    return make_torch_model("llama", tmp_path_factory.mktemp("plain"))

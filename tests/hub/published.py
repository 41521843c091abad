"""config.json of published models as the Hub has them, with every odd field, and tiny sizes.

Sizes that belong together (heads, head_dim, lists of rotary factors) are scaled; flags, thetas,
spellings and fields without use here are the published ones.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.folders import write_model

_TINY: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.02,
    "use_cache": True,
}  # fmt: skip
_LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
_LONG = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 4.0], "type": "longrope"}


def _config(architecture: str, model_type: str, **fields: Any) -> dict[str, Any]:
    return {**_TINY, "architectures": [architecture], "model_type": model_type, **fields}


_LLAMA31 = _config(
    "LlamaForCausalLM", "llama", attention_bias=False, attention_dropout=0.0, bos_token_id=1,
    eos_token_id=[2, 3, 4], hidden_act="silu", max_position_embeddings=131072, mlp_bias=False,
    pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=_LLAMA3_ROPE, rope_theta=500000.0,
    tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.42.3",
)  # fmt: skip
_GEMMA2 = _config(
    "Gemma2ForCausalLM", "gemma2", attention_bias=False, attention_dropout=0.0,
    attn_logit_softcapping=50.0, bos_token_id=2, cache_implementation="hybrid", eos_token_id=[1, 7],
    final_logit_softcapping=30.0, head_dim=8, hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192, pad_token_id=0,
    query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096,
    torch_dtype="bfloat16", transformers_version="4.42.4",
)  # fmt: skip
_PHI35 = _config(
    "Phi3ForCausalLM", "phi3", _name_or_path="Phi-3.5-mini-instruct", num_key_value_heads=4,
    attention_bias=False, attention_dropout=0.0, bos_token_id=1, embd_pdrop=0.0, eos_token_id=32,
    auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, hidden_act="silu", pad_token_id=32,
    max_position_embeddings=131072, original_max_position_embeddings=4096, resid_pdrop=0.0,
    rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=False,
    rope_scaling={**_LONG, "short_factor": [1.0] * 4, "long_factor": [1.1, 1.2, 2.0, 4.0]},
    torch_dtype="bfloat16", transformers_version="4.43.3", attn_implementation="eager",
)  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 3.1": _LLAMA31,
    "Llama 3.2": {
        **_LLAMA31, "head_dim": 8, "tie_word_embeddings": True,
        "rope_scaling": {**_LLAMA3_ROPE, "factor": 32.0},
    },
    "Mistral 7B v0.3": _config(
        "MistralForCausalLM", "mistral", attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
        hidden_act="silu", max_position_embeddings=32768, rms_norm_eps=1e-05,
        rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False,
        torch_dtype="bfloat16", transformers_version="4.42.0.dev0",
    ),
    "Mistral Nemo": _config(
        "MistralForCausalLM", "mistral", attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
        head_dim=16, hidden_act="silu", max_position_embeddings=131072, rms_norm_eps=1e-05,
        rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False,
        torch_dtype="bfloat16", transformers_version="4.43.0.dev0",
    ),
    "Qwen2.5": _config(
        "Qwen2ForCausalLM", "qwen2", attention_dropout=0.0, bos_token_id=43, eos_token_id=45,
        hidden_act="silu", max_position_embeddings=32768, max_window_layers=21,
        rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True,
        torch_dtype="bfloat16", transformers_version="4.43.1", use_sliding_window=False,
    ),
    "Qwen3": _config(
        "Qwen3ForCausalLM", "qwen3", attention_bias=False, attention_dropout=0.0, bos_token_id=43,
        eos_token_id=45, head_dim=16, hidden_act="silu", max_position_embeddings=40960,
        max_window_layers=28, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000,
        sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16",
        transformers_version="4.51.0", use_sliding_window=False,
    ),
    "Qwen3 MoE": _config(
        "Qwen3MoeForCausalLM", "qwen3_moe", attention_bias=False, attention_dropout=0.0,
        bos_token_id=43, decoder_sparse_step=1, eos_token_id=45, head_dim=16, hidden_act="silu",
        max_position_embeddings=40960, max_window_layers=48, mlp_only_layers=[],
        moe_intermediate_size=24, norm_topk_prob=True, num_experts=4, num_experts_per_tok=2,
        output_router_logits=False, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000.0,
        router_aux_loss_coef=0.001, sliding_window=None, tie_word_embeddings=False,
        torch_dtype="bfloat16", transformers_version="4.51.0", use_sliding_window=False,
    ),
    "Qwen1.5 MoE": _config(
        "Qwen2MoeForCausalLM", "qwen2_moe", attention_dropout=0.0, bos_token_id=43,
        decoder_sparse_step=1, eos_token_id=43, hidden_act="silu", max_position_embeddings=8192,
        max_window_layers=21, moe_intermediate_size=24, norm_topk_prob=False, num_experts=6,
        num_experts_per_tok=4, output_router_logits=False, rms_norm_eps=1e-06,
        rope_theta=1000000.0, router_aux_loss_coef=0.001, shared_expert_intermediate_size=40,
        sliding_window=32768, tie_word_embeddings=False, torch_dtype="bfloat16",
        transformers_version="4.39.0.dev0", use_sliding_window=False,
    ),
    "OLMoE": _config(
        "OlmoeForCausalLM", "olmoe", attention_bias=False, attention_dropout=0.0, clip_qkv=None,
        eos_token_id=57, hidden_act="silu", intermediate_size=24, max_position_embeddings=4096,
        norm_topk_prob=False, num_experts=8, num_experts_per_tok=3, num_key_value_heads=4,
        output_router_logits=False, pad_token_id=1, rms_norm_eps=1e-05, rope_scaling=None,
        rope_theta=10000.0, router_aux_loss_coef=0.01, tie_word_embeddings=False,
        torch_dtype="bfloat16", transformers_version="4.43.0.dev0",
    ),
    "GLM-4.5 Air": _config(
        "Glm4MoeForCausalLM", "glm4_moe", attention_bias=True, attention_dropout=0.0,
        eos_token_id=[9, 16, 18], first_k_dense_replace=1, head_dim=16, hidden_act="silu",
        max_position_embeddings=131072, moe_intermediate_size=24, n_group=1, n_routed_experts=8,
        n_shared_experts=1, norm_topk_prob=True, num_experts_per_tok=3, num_hidden_layers=3,
        num_nextn_predict_layers=1, pad_token_id=9, partial_rotary_factor=0.5, rms_norm_eps=1e-05,
        rope_scaling=None, rope_theta=1000000, routed_scaling_factor=1.0,
        tie_word_embeddings=False, topk_group=1, torch_dtype="bfloat16",
        transformers_version="4.54.0", use_qk_norm=False,
    ),
    "Mixtral": _config(
        "MixtralForCausalLM", "mixtral", attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
        hidden_act="silu", max_position_embeddings=32768, num_experts_per_tok=2,
        num_local_experts=4, output_router_logits=False, rms_norm_eps=1e-05,
        rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None,
        tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.36.0.dev0",
    ),
    "Gemma 1": _config(
        "GemmaForCausalLM", "gemma", attention_bias=False, attention_dropout=0.0, bos_token_id=2,
        eos_token_id=1, head_dim=8, hidden_act="gelu", hidden_activation=None,
        max_position_embeddings=8192, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-06,
        rope_scaling=None, rope_theta=10000.0, torch_dtype="bfloat16",
        transformers_version="4.38.0.dev0",
    ),
    "Gemma 2": _GEMMA2,
    "Gemma 3 1B": _config(
        "Gemma3ForCausalLM", "gemma3_text", attention_bias=False, attention_dropout=0.0,
        attn_logit_softcapping=None, bos_token_id=2, cache_implementation="hybrid",
        eos_token_id=[1, 6], final_logit_softcapping=None, head_dim=8, num_hidden_layers=7,
        hidden_activation="gelu_pytorch_tanh", max_position_embeddings=32768, pad_token_id=0,
        query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_local_base_freq=10000,
        rope_scaling=None, rope_theta=1000000, sliding_window=512, sliding_window_pattern=6,
        torch_dtype="bfloat16", transformers_version="4.50.0.dev0",
    ),
    "Phi-3 4k": {
        **{key: value for key, value in _PHI35.items() if key != "attn_implementation"},
        "max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047,
    },
    "Phi-3.5": _PHI35,
    "Phi-4-mini": {
        **_PHI35, "num_key_value_heads": 2, "partial_rotary_factor": 0.75, "full_attn_mod": 1,
        "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "rope_scaling": _LONG,
        "tie_word_embeddings": True, "eos_token_id": 63, "pad_token_id": 63, "bos_token_id": 63,
    },
    "OLMo 2": _config(
        "Olmo2ForCausalLM", "olmo2", attention_bias=False, attention_dropout=0.0, eos_token_id=57,
        hidden_act="silu", max_position_embeddings=4096, num_key_value_heads=4, pad_token_id=56,
        rms_norm_eps=1e-06, rope_scaling=None, rope_theta=500000, tie_word_embeddings=False,
        torch_dtype="float32", transformers_version="4.47.0",
    ),
    "OLMo 3": _config(
        "Olmo3ForCausalLM", "olmo3", attention_bias=False, attention_dropout=0.0, eos_token_id=57,
        hidden_act="silu", max_position_embeddings=65536, num_hidden_layers=4, pad_token_id=56,
        layer_types=["sliding_attention"] * 3 + ["full_attention"], num_key_value_heads=4,
        rms_norm_eps=1e-06, rope_theta=500000, sliding_window=4096, tie_word_embeddings=False,
        rope_scaling={
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
            "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
        torch_dtype="bfloat16", transformers_version="4.57.0.dev0",
    ),
    "Granite 3": _config(
        "GraniteForCausalLM", "granite", attention_bias=False, attention_dropout=0.1,
        attention_multiplier=0.125, bos_token_id=0, embedding_multiplier=12.0, eos_token_id=0,
        hidden_act="silu", logits_scaling=8.0, max_position_embeddings=131072, mlp_bias=False,
        pad_token_id=0, residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None,
        rope_theta=5000000.0, tie_word_embeddings=True, torch_dtype="bfloat16",
        transformers_version="4.46.0.dev0",
    ),
    "SmolLM3": _config(
        "SmolLM3ForCausalLM", "smollm3", attention_bias=False, attention_dropout=0.0,
        bos_token_id=1, eos_token_id=12, hidden_act="silu", layer_types=["full_attention"] * 4,
        max_position_embeddings=65536, max_window_layers=28, mlp_bias=False, num_hidden_layers=4,
        no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0], pad_token_id=4, pretraining_tp=2,
        rms_norm_eps=1e-06, rope_scaling=None, rope_theta=5000000.0, sliding_window=None,
        tie_word_embeddings=True, torch_dtype="bfloat16", transformers_version="4.54.0.dev0",
        use_sliding_window=False,
    ),
    "Seed-OSS 36B": _config(
        "SeedOssForCausalLM", "seed_oss", attention_bias=True, attention_dropout=0.1,
        attention_out_bias=False, bos_token_id=0, eos_token_id=2, head_dim=16, hidden_act="silu",
        max_position_embeddings=524288, mlp_bias=False, pad_token_id=1, residual_dropout=0.1,
        rms_norm_eps=1e-06, rope_scaling={"rope_type": "default"}, rope_theta=10000000.0,
        tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.55.0",
    ),
    "AFM 4.5B": _config(
        "ArceeForCausalLM", "arcee", attention_bias=False, attention_dropout=0.0, bos_token_id=0,
        eos_token_id=3, head_dim=16, hidden_act="relu2", max_position_embeddings=65536,
        mlp_bias=False, rms_norm_eps=1e-05, rope_theta=10000.0, tie_word_embeddings=False,
        rope_scaling={
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "type": "yarn",
        },
        torch_dtype="bfloat16", transformers_version="4.53.0.dev0",
    ),
    "Hunyuan 1.8B": _config(
        "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", add_classification_head=False,
        attention_bias=False, attention_dropout=0.0, attention_head_dim=8, bos_token_id=1,
        cla_share_factor=2, class_num=0, dense_list=[32, 0], eod_token_id=20, eos_token_id=20,
        head_dim=8, hidden_act="silu", max_position_embeddings=262144, mlp_bias=False,
        norm_type="rms", num_experts=1, org_vocab_size=64, pad_id=27, pad_token_id=27,
        rms_norm_eps=1e-05, rope_theta=10000.0, tie_word_embeddings=True, use_cla=False,
        use_qk_norm=True, use_rotary_pos_emb=True,
        rope_scaling={
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
            "mscale_all_dim": 1.0, "type": "dynamic",
        },
        torch_dtype="bfloat16", transformers_version="4.41.2",
    ),
    "GLM-4 0414": _config(
        "Glm4ForCausalLM", "glm4", attention_bias=True, attention_dropout=0.0,
        eos_token_id=[9, 16, 18], head_dim=16, hidden_act="silu", max_position_embeddings=32768,
        pad_token_id=9, partial_rotary_factor=0.5, rms_norm_eps=1e-05, rope_theta=10000.0,
        tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.52.0.dev0",
    ),
    "ERNIE 4.5 0.3B": _config(
        "Ernie4_5ForCausalLM", "ernie4_5", bos_token_id=1, eos_token_id=2, head_dim=16,
        hidden_act="silu", max_position_embeddings=131072, pad_token_id=0, rms_norm_eps=1e-05,
        rope_theta=500000.0, tie_word_embeddings=True, use_bias=False, torch_dtype="bfloat16",
        transformers_version="4.54.0.dev0", use_flash_attention=False,
    ),
    "Command R7B": _config(
        "Cohere2ForCausalLM", "cohere2", attention_bias=False, attention_dropout=0.0,
        bos_token_id=5, cache_implementation="hybrid", eos_token_id=11, head_dim=8,
        hidden_act="silu", layer_norm_eps=1e-05, layer_switch=4, logit_scale=0.25,
        max_position_embeddings=132096, num_hidden_layers=4, pad_token_id=0,
        order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj",
        rope_scaling=None, rope_theta=50000, rotary_pct=1.0, sliding_window=4096,
        sliding_window_pattern=4, torch_dtype="bfloat16", transformers_version="4.48.0.dev0",
        use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True,
        use_parallel_embedding=True,
    ),
    "EXAONE 4.0 1.2B": _config(
        "Exaone4ForCausalLM", "exaone4", attention_dropout=0.0, bos_token_id=1, eos_token_id=36,
        head_dim=8, hidden_act="silu", layer_types=["full_attention"] * 2, pad_token_id=0,
        max_position_embeddings=65536, rms_norm_eps=1e-05, rope_theta=1000000,
        rope_scaling={
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        sliding_window=None, sliding_window_pattern=None, tie_word_embeddings=True,
        torch_dtype="bfloat16", transformers_version="4.54.0.dev0",
    ),
    "EXAONE 4.0 32B": _config(
        "Exaone4ForCausalLM", "exaone4", attention_dropout=0.0, bos_token_id=1, eos_token_id=36,
        head_dim=8, hidden_act="silu", num_hidden_layers=4, pad_token_id=0,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        max_position_embeddings=131072, rms_norm_eps=1e-05, rope_theta=1000000,
        rope_scaling={
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        sliding_window=4096, sliding_window_pattern="LLLG", tie_word_embeddings=False,
        torch_dtype="bfloat16", transformers_version="4.54.0.dev0",
    ),
    "Minitron 4B": _config(
        "NemotronForCausalLM", "nemotron", attention_bias=False, attention_dropout=0.0,
        bos_token_id=2, eos_token_id=3, head_dim=16, hidden_act="relu2",
        max_position_embeddings=4096, mlp_bias=False, norm_eps=1e-05, partial_rotary_factor=0.5,
        rope_theta=10000, tie_word_embeddings=False, torch_dtype="bfloat16",
        transformers_version="4.32.0.dev0",
    ),
    "Granite 4.0 1B": _config(
        "GraniteMoeHybridForCausalLM", "granitemoehybrid", attention_bias=False,
        attention_dropout=0.0, attention_multiplier=0.0078125, bos_token_id=57,
        embedding_multiplier=12, eos_token_id=57, hidden_act="silu", init_method="mup",
        layer_types=["attention"] * 2, logits_scaling=8, mamba_chunk_size=256,
        mamba_conv_bias=True, mamba_d_conv=4, mamba_d_head=32, mamba_d_state=128, mamba_expand=2,
        mamba_n_groups=1, mamba_n_heads=2, mamba_proj_bias=False, max_position_embeddings=131072,
        normalization_function="rmsnorm", num_experts_per_tok=0, num_local_experts=0,
        output_router_logits=False, pad_token_id=56, position_embedding_type="rope",
        residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000000,
        router_aux_loss_coef=0.01, shared_intermediate_size=40, tie_word_embeddings=True,
        torch_dtype="bfloat16", transformers_version="4.56.0",
    ),
    "GPT-2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50, "embd_pdrop": 0.1, "eos_token_id": 50, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 64, "n_embd": 32, "n_head": 4,
        "n_layer": 2, "n_positions": 64, "resid_pdrop": 0.1, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 64,
    },
}  # fmt: skip


def write_published(name: str, folder: Path) -> Path:
    """Writes a folder with a published config.json and random weights under the Hub's names."""
    given = PUBLISHED[name]
    known = {name: value for name, value in given.items() if name not in ("auto_map",)}
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**known))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    write_model(folder, model=model)
    (folder / "config.json").write_text(json.dumps(given))
    return folder

"""Tiny random torch models of every family, saved as transformers saves them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
)
# Sequences of the tests are 40 tokens: longer than each window and each original context.
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "llama-biases-linear-rope": LlamaConfig(
        **SIZES, num_key_value_heads=4, attention_bias=True, mlp_bias=True,
        max_position_embeddings=16, rope_parameters=LINEAR_ROPE, rms_norm_eps=1e-3,
    ),
    "llama3-tied-one-kv-head": LlamaConfig(
        **SIZES, num_key_value_heads=1, head_dim=12, tie_word_embeddings=True,
        max_position_embeddings=128, rope_parameters=LLAMA3_ROPE,
    ),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=7, head_dim=10),
    "mistral-no-window": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "qwen2": Qwen2Config(
        **SIZES, num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen2-windows-tied": Qwen2Config(
        **SIZES, num_key_value_heads=4, use_sliding_window=True, sliding_window=5,
        max_window_layers=1, tie_word_embeddings=True,
    ),
}  # fmt: skip


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
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    return TorchModel(model, folder)


@pytest.fixture(scope="session", params=list(CONFIGS))
def each_model(request, tmp_path_factory) -> TorchModel:
    """Every config in turn."""
    return make_torch_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> TorchModel:
    """The plain Llama: untied, grouped heads."""
    return make_torch_model("llama", tmp_path_factory.mktemp("plain"))

"""The llama architecture: metadata of GGUF ↔ config.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_to_hf
from jaxdpo.hub.gguf.file import GgufFile
from jaxdpo.hub.gguf.tensors import FREQUENCIES, HEAD
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.rope import LinearScaling, Llama3Scaling, RopeConfig, inverse_frequencies

ARCHITECTURE = "llama"
# Families of Hugging Face that llama.cpp runs as its llama architecture.
_FAMILIES = ("llama", "mistral")
# A GGUF file holds the divisors that Llama 3.1's scaling results in, not the three numbers that
# they are made from. All of Meta's models have these.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config_of(file: GgufFile) -> dict[str, Any]:
    """Reads the config.json of the model in a GGUF file, without its special tokens.

    Raises:
      UserError: For another architecture, a missing key, or a value that is not implemented.
    """
    found = file.value("general.architecture", str)
    if found != ARCHITECTURE:
        raise UserError(
            f"{file.path}: holds a model of the architecture {found!r}; only {ARCHITECTURE} is "
            "read. Take the model's Hugging Face folder instead"
        )
    # Mixtral has the same architecture's name, and other tensors.
    if file.metadata.get("llama.expert_count"):
        raise UserError(f"{file.path}: holds a mixture of experts, which is not read from GGUF")
    if "split.count" in file.metadata and file.metadata["split.count"] > 1:
        raise UserError(
            f"{file.path}: is one of {file.metadata['split.count']} files of a model; merge them "
            "with llama-gguf-split --merge"
        )
    heads, hidden = _size(file, "attention.head_count"), _size(file, "embedding_length")
    # Older files leave out what follows from the other sizes.
    head_dim = file.metadata.get("llama.attention.key_length", hidden // heads)
    if file.metadata.get("llama.attention.value_length", head_dim) != head_dim:
        raise UserError(f"{file.path}: keys and values of different widths are not implemented")
    if file.metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{file.path}: rotating a part of each head is not implemented for llama")
    theta = _shortest(file.metadata.get("llama.rope.freq_base", 10000.0))
    scaling = _scaling_of(file, RopeConfig(theta=theta), head_dim)
    # Its rows say the size of the vocabulary: llama.vocab_size is missing in many files.
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{file.path}: holds no token_embd.weight, so it is not a whole model")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _size(file, "feed_forward_length"),
        "num_hidden_layers": _size(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _size(file, "context_length"),
        "rms_norm_eps": _shortest(file.value("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        "rope_scaling": scaling,
        # llama.cpp takes the embedding for a head that the file does not hold.
        "tie_word_embeddings": HEAD not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _size(file: GgufFile, name: str) -> int:
    size = file.value(f"llama.{name}", int)
    if size < 1:
        raise UserError(f"{file.path}: llama.{name} is {size}; it must be 1 or more")
    return size


def _shortest(value: float) -> float:
    """Returns the shortest decimal number that is this one in fp32, as people wrote it: 1e-05."""
    return float(str(np.float32(value)))


def _scaling_of(file: GgufFile, plain: RopeConfig, head_dim: int) -> dict[str, Any] | None:
    """Reads `rope_scaling`."""
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    # llama.cpp applies the divisors whatever type the metadata name.
    if FREQUENCIES in file.tensors:
        return _llama3_of(file, plain, head_dim)
    if kind == "none":
        return None
    if kind != "linear":
        raise UserError(f"{file.path}: llama.rope.scaling.type {kind!r} is not read, only linear")
    return {"rope_type": "linear", "factor": file.value("llama.rope.scaling.factor", float)}


def _llama3_of(file: GgufFile, plain: RopeConfig, head_dim: int) -> dict[str, Any]:
    tensor = file.tensors[FREQUENCIES]
    divisors = tensor.read(tuple(slice(0, size) for size in tensor.shape))
    scaling = {"rope_type": "llama3", "factor": _shortest(divisors.max()), **_LLAMA3}
    rope = plain.model_copy(
        update={
            "scaling": Llama3Scaling(
                factor=scaling["factor"],
                low_freq_factor=scaling["low_freq_factor"],
                high_freq_factor=scaling["high_freq_factor"],
                original_max_positions=scaling["original_max_position_embeddings"],
            )
        }
    )
    # fp32 on both sides, computed in another order.
    if divisors.shape != (head_dim // 2,) or not np.allclose(
        divisors, frequency_divisors(rope, head_dim), rtol=1e-4
    ):
        raise UserError(
            f"{file.path}: {FREQUENCIES} is not the scaling of Llama 3.1 to 3.3, the only one read"
        )
    return scaling


def frequency_divisors(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Computes what the scaling divides each rotary frequency by: `[head_dim / 2]`, fp32.

    Args:
      rope: Frequencies with a scaling.
      head_dim: Channels of a head.
    """
    plain = rope.model_copy(update={"scaling": None})
    scaled = inverse_frequencies(rope, head_dim)
    return (inverse_frequencies(plain, head_dim) / scaled).astype(np.float32)


def check_writable(config: ModelConfig, hf_config: Mapping[str, Any]) -> None:
    """Raises unless llama.cpp's llama architecture computes the same as this model.

    Args:
      config: Architecture.
      hf_config: Its config.json.

    Raises:
      UserError: If it does not.
    """
    family = hf_config.get("model_type")
    if family not in _FAMILIES:
        raise UserError(
            f"format=gguf: writes models of the families {', '.join(_FAMILIES)}, and this one is "
            f"{family}; convert its Hugging Face folder with llama.cpp's convert_hf_to_gguf.py"
        )
    # llama.cpp would load each of these and compute something else, without a word.
    problem = None
    scaling = None if config.attention.rope is None else config.attention.rope.scaling
    if config.attention.windows is not None:
        problem = "sliding windows (config.json: sliding_window)"
    elif config.mlp.activation != "silu":
        problem = f"the activation {config.mlp.activation}"
    elif scaling is not None and not isinstance(scaling, LinearScaling | Llama3Scaling):
        problem = f"rotary embeddings scaled by {scaling.kind!r}"
    if problem is not None:
        raise UserError(f"format=gguf: llama.cpp's llama architecture does not have {problem}")
    # Raises for whatever else llama has no field for, such as a factor on the logits.
    config_to_hf(config, {"model_type": "llama"})


def metadata_of(config: ModelConfig, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the architecture's metadata; llama.cpp reads whole numbers and floats apart.

    Args:
      config: Architecture that `check_writable` accepts.
      hf_config: Its config.json.
    """
    attention = config.attention
    assert attention.rope is not None
    metadata = {
        "llama.vocab_size": config.vocab_size,
        # What transformers takes where config.json does not say.
        "llama.context_length": int(hf_config.get("max_position_embeddings") or 2048),
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.mlp.intermediate_size,
        "llama.rope.dimension_count": attention.head_dim,
        "llama.rope.freq_base": float(attention.rope.theta),
        "llama.attention.head_count": attention.num_heads,
        "llama.attention.head_count_kv": attention.num_kv_heads,
        "llama.attention.key_length": attention.head_dim,
        "llama.attention.value_length": attention.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm.eps),
    }
    if isinstance(attention.rope.scaling, LinearScaling):
        metadata["llama.rope.scaling.type"] = "linear"
        metadata["llama.rope.scaling.factor"] = float(attention.rope.scaling.factor)
    return metadata

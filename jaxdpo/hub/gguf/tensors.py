"""Names and layouts of llama's tensors in GGUF, and in Hugging Face's files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.arrays import Readable
from jaxdpo.model.config import ModelConfig

_SINGLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HF_OF_LAYER = {hf_name: name for name, hf_name in _OF_LAYER.items()}
# Divisors of the rotary frequencies, where they are scaled as in Llama 3.1: no parameter.
FREQUENCIES = "rope_freqs.weight"
HEAD = "output.weight"


def hf_name(name: str) -> str | None:
    """Returns Hugging Face's name of a tensor of a GGUF file, or None if llama has no such tensor.

    >>> hf_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    stem, _, end = name.rpartition(".")
    if stem in _SINGLE:
        return f"{_SINGLE[stem]}.{end}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if found is None or found[2] not in _OF_LAYER:
        return None
    return f"model.layers.{found[1]}.{_OF_LAYER[found[2]]}.{end}"


def gguf_name(name: str) -> str:
    """Returns a tensor's name in GGUF, given Hugging Face's.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    stem, _, end = name.rpartition(".")
    for own, theirs in _SINGLE.items():
        if stem == theirs:
            return f"{own}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_HF_OF_LAYER[part]}.{end}"


def heads_of(name: str, config: ModelConfig) -> int | None:
    """Returns the number of heads whose rows a tensor of q or k stacks; None for other tensors.

    Args:
      name: Name in GGUF.
      config: Architecture.
    """
    if ".attn_q." in name:
        return config.attention.num_heads
    return config.attention.num_kv_heads if ".attn_k." in name else None


# Both rotate pairs of a head's channels. transformers pairs channel i with i + d/2, llama.cpp pairs
# neighbours, 2i and 2i + 1; so a GGUF file has the rows of q and k in another order, which leaves
# their products as they are.


def to_neighbours(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of q or k from transformers' order to llama.cpp's.

    Args:
      array: `[heads · d, …]`, a kernel or a bias.
      heads: Number of heads.
    """
    # [heads, half, i, …] → [heads, i, half, …]: row half · d/2 + i of a head becomes 2i + half.
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def to_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of q or k from llama.cpp's order to transformers'.

    Args:
      array: `[heads · d, …]`, a kernel or a bias.
      heads: Number of heads.
    """
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


@dataclass(frozen=True)
class Reordered:
    """A tensor of q or k, read with its rows in transformers' order."""

    tensor: Readable
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """Type of the tensor."""
        return self.tensor.dtype

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the tensor."""
        # Rows that are neighbours here lie apart in the file, so all of them are read.
        rows, *rest = index
        array = self.tensor.read((slice(0, self.shape[0]), *rest))
        return to_halves(array, self.heads)[rows]


def hf_tensors(
    path: object, tensors: Mapping[str, Readable], config: ModelConfig
) -> dict[str, Readable]:
    """Returns a file's tensors under Hugging Face's names and in its layout.

    Args:
      path: The file, for messages.
      tensors: Name in GGUF ↦ tensor.
      config: Architecture.

    Raises:
      UserError: For a tensor that llama does not have, or q or k of another size.
    """
    found: dict[str, Readable] = {}
    for name, tensor in tensors.items():
        if name == FREQUENCIES:
            continue
        named, heads = hf_name(name), heads_of(name, config)
        if named is None:
            raise UserError(f"{path}: holds {name}, a tensor that the llama architecture has not")
        if heads is not None:
            rows = heads * config.attention.head_dim
            if not tensor.shape or tensor.shape[0] != rows:
                raise UserError(
                    f"{path}: {name} has shape {list(tensor.shape)}, but {heads} heads of "
                    f"{config.attention.head_dim} channels have {rows} rows"
                )
            tensor = Reordered(tensor, heads)
        found[named] = tensor
    return found

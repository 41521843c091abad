"""A frozen base in fewer bits, for adapters on top (QLoRA, https://arxiv.org/abs/2305.14314).

Each column of a kernel `[inputs, outputs]` is split into blocks of 64 inputs. A block keeps one
fp32 scale and a code for each weight:

  int8  scale = max |w| / 127; code = round(w / scale), a byte
  nf4   scale = max |w|; code = the nearest of sixteen values to w / scale, two codes in a byte

That is 8.5 or 4.5 bits a weight. A kernel is dequantized to the activations' dtype where it is
multiplied, forwards and backwards anew, and is never kept: in a scan over layers there is one layer
of them at a time. Embeddings, head, norms, biases and routers stay as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from jaxdpo.devices.sharding import path_name
from jaxdpo.errors import UserError

BaseKind = Literal["full", "int8", "nf4"]

_BLOCK = 64
# Scales of smaller blocks would take as much memory as the codes.
_SMALLEST_BLOCK = 16


def _normal_quantiles() -> np.ndarray:
    """Computes the sixteen values of NF4: quantiles of a normal distribution, over the largest.

    Seven below zero, zero, and eight above, evenly spaced in probability from a tail of about 1/32
    to 1/2 (Dettmers et al. 2023, section 3, with the offset of the authors' code).
    """
    tail = 1 - (1 / 30 + 1 / 32) / 2
    # `ndtri` is the inverse of the normal distribution function; the last, ndtri(½) = 0, is left
    # out of both sides and put between them.
    above, below = (ndtri(np.linspace(tail, 0.5, count)[:-1]) for count in (9, 8))
    values = np.concatenate([-below, [0.0], above[::-1]])
    return (values / values.max()).astype(np.float32)


NF4 = _normal_quantiles()
# Above the n-th of these, a weight is nearer to value n + 1.
_MIDDLES = ((NF4[1:].astype(np.float64) + NF4[:-1]) / 2).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A stack of quantized kernels; a leaf of the parameters where an array would be.

    Attributes:
      codes: i8 `[..., inputs, outputs]`; of nf4 u8 `[..., inputs / 2, outputs]`, in which the first
        half of a block are the low four bits, and the second half the high ones.
      scales: f32 `[..., inputs / block, outputs]`.
    """

    codes: Any
    scales: Any

    @property
    def kind(self) -> BaseKind:
        """Format of the codes."""
        return "nf4" if self.codes.dtype == np.uint8 else "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernels that the codes stand for, `[..., inputs, outputs]`."""
        *leading, rows, outputs = self.codes.shape
        return (*leading, rows * (2 if self.kind == "nf4" else 1), outputs)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return self.shape[-2] // self.scales.shape[-2]

    def __getitem__(self, index: Any) -> "Quantized":
        """Returns a part along the leading axes, such as one layer's kernel."""
        return Quantized(self.codes[index], self.scales[index])

    def dequantized(self, dtype: Any) -> Any:
        """Returns the kernels as arrays of a dtype; NumPy's where the codes are NumPy's."""
        *leading, inputs, outputs = self.shape
        xp: Any = np if isinstance(self.codes, np.ndarray) else jnp
        rows = self.codes.shape[-2] // self.scales.shape[-2]
        # [..., blocks, rows of a block, outputs], so that a scale meets its block.
        values = self.codes.reshape(*leading, -1, rows, outputs)
        if self.kind == "nf4":
            # A byte holds a weight of the block's first half in its low bits and one of the second
            # half in its high ones: unpacked, they stand one half after the other.
            both = [values & 15, values >> 4]
            values = xp.asarray(NF4)[xp.concatenate(both, axis=-2)]
        weights = values.astype(np.float32) * self.scales[..., None, :]
        return weights.reshape(*leading, inputs, outputs).astype(dtype)


def is_quantized(leaf: Any) -> bool:
    """Returns whether a leaf of the parameters is quantized; for `is_leaf` of tree functions."""
    return isinstance(leaf, Quantized)


def block_of(inputs: int) -> int:
    """Returns how many inputs of a kernel share a scale: 64, or the largest number dividing both.

    Raises:
      UserError: If that is too few.
    """
    block = math.gcd(inputs, _BLOCK)
    if block < _SMALLEST_BLOCK:
        raise UserError(
            f"lora.base: a linear map of this model has {inputs} inputs, which blocks of "
            f"{_SMALLEST_BLOCK} or more do not divide; set lora.base=full"
        )
    return block


def quantize(kernel: Any, kind: BaseKind, block: int | None = None) -> Quantized:
    """Quantizes kernels `[..., inputs, outputs]`, of NumPy or of jax, into codes and scales.

    Args:
      kernel: The kernels, of any float dtype.
      kind: "int8" or "nf4".
      block: Inputs that share a scale; None for `block_of`.
    """
    *leading, inputs, outputs = kernel.shape
    block = block or block_of(inputs)
    blocks = kernel.astype(np.float32).reshape(*leading, inputs // block, block, outputs)
    scales = abs(blocks).max(axis=-2, keepdims=True)
    if kind == "int8":
        # By a product: compilers make one of a division, which may round otherwise than NumPy.
        scales = scales * np.float32(1 / 127)
    # A block of zeros has the scale 0: divided by 1 instead, its codes are 0 and not NaN.
    unit = blocks / (scales + (scales == 0))
    if kind == "int8":
        codes = unit.round().astype(np.int8)
    else:
        # A code is the number of middles below the weight. Fifteen comparisons and no search: they
        # are made element by element, in memory of a byte a weight.
        nearest = (unit > _MIDDLES[0]).astype(np.uint8)
        for middle in _MIDDLES[1:]:
            nearest = nearest + (unit > middle)
        codes = nearest[..., : block // 2, :] | (nearest[..., block // 2 :, :] << 4)
    return Quantized(codes.reshape(*leading, -1, outputs), scales[..., 0, :])


def map_kernels(change: Callable[[Any], Any], params: dict[str, Any]) -> dict[str, Any]:
    """Changes the kernels of all layers, of experts too, and returns the parameters with them."""

    def changed(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return change(leaf) if name.startswith("layers/") and name.endswith("/kernel") else leaf

    return jax.tree.map_with_path(changed, params, is_leaf=is_quantized)


def quantize_layers(params: dict[str, Any], kind: BaseKind) -> dict[str, Any]:
    """Quantizes the layers' kernels; "full" leaves the parameters as they are."""
    if kind == "full":
        return params
    return map_kernels(lambda kernel: quantize(kernel, kind), params)


def product(x: jax.Array, kernel: Any, sizes_E: jax.Array | None = None) -> jax.Array:
    """Computes `x @ kernel` in the dtype of x.

    Args:
      x: `[..., inputs]`.
      kernel: An array or `Quantized`, `[inputs, outputs]`; with `sizes_E` `[E, inputs, outputs]`.
      sizes_E: How many rows of x, which are sorted by expert, each expert has.
    """
    if isinstance(kernel, Quantized):
        return _quantized_product(x, kernel, sizes_E)
    return _product(x, kernel.astype(x.dtype), sizes_E)


def _product(x: jax.Array, kernel: jax.Array, sizes_E: jax.Array | None) -> jax.Array:
    return x @ kernel if sizes_E is None else jax.lax.ragged_dot(x, kernel, sizes_E)


@jax.custom_vjp
def _quantized_product(x: jax.Array, kernel: Quantized, sizes_E: jax.Array | None) -> jax.Array:
    return _product(x, kernel.dequantized(x.dtype), sizes_E)


def _forwards(x: jax.Array, kernel: Quantized, sizes_E: jax.Array | None) -> Any:
    # The codes are kept and not the dequantized kernel, as plain differentiation would keep it: of
    # all layers that would be the whole model.
    return _quantized_product(x, kernel, sizes_E), (kernel, sizes_E)


def _backwards(kept: Any, gradient: jax.Array) -> Any:
    quantized, sizes_E = kept
    kernel = quantized.dequantized(gradient.dtype)
    x = jax.ShapeDtypeStruct((*gradient.shape[:-1], kernel.shape[-2]), gradient.dtype)
    # The product is linear in x, and its transpose is gradient @ kernelᵀ; for experts, JAX knows
    # that of `ragged_dot`. The base is frozen: codes and scales get no gradient.
    (dx,) = jax.linear_transpose(lambda x: _product(x, kernel, sizes_E), x)(gradient)
    return dx, None, None


_quantized_product.defvjp(_forwards, _backwards)

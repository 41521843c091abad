"""Quantized models: quantized while their files are read, and dequantized while they are written.

At no time does this hold more than one of a model's matrices in full precision, on the host or on a
device.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdpo.devices.sharding import shardings_for
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.model.decoder import Params
from jaxdpo.model.quantized import (
    BaseKind,
    Quantized,
    block_of,
    is_quantized,
    map_kernels,
    quantize,
    quantize_layers,
)
from jaxdpo.storage.lazy_array import Spans, Stored


def kind_of(params: Params) -> BaseKind:
    """Returns the number format of the layers' kernels."""
    leaves = jax.tree.leaves(params["layers"], is_leaf=is_quantized)
    return next((leaf.kind for leaf in leaves if is_quantized(leaf)), "full")


def quantize_params(params: Params, kind: BaseKind) -> Params:
    """Quantizes the layers' kernels.

    Args:
      params: Parameters; those left in their files are quantized when they are read.
      kind: "int8" or "nf4".

    Raises:
      UserError: If blocks do not divide a kernel's inputs.
    """
    if isinstance(params["embed"]["weight"], Stored):
        return map_kernels(lambda kernel: _quantized_on_reading(kernel, kind), params)
    # Shapes alone, to find the shardings that the codes are born with.
    expected = jax.eval_shape(lambda tree: quantize_layers(tree, kind), params)
    mesh = getattr(params["embed"]["weight"].sharding, "mesh", None)
    shardings = None if mesh is None else shardings_for(expected, mesh)
    return jax.jit(lambda tree: quantize_layers(tree, kind), out_shardings=shardings)(params)


def _quantized_on_reading(kernel: Stored, kind: BaseKind) -> Quantized:
    *leading, inputs, outputs = kernel.shape
    block = block_of(inputs)

    def stored(field: str, rows_of_block: int, dtype: Any) -> Stored:
        def one(spans: Spans) -> np.ndarray:
            *outer, rows, columns = spans
            # A scale belongs to a whole block of inputs, so a device whose slice begins inside a
            # block quantizes the block whole and keeps its part.
            blocks, rest = _whole_blocks(rows, rows_of_block)
            whole = slice(blocks.start * block, blocks.stop * block)
            made = quantize(kernel.read((*outer, whole, columns)), kind, block)
            return getattr(made, field)[..., rest, :]

        shape = (*leading, inputs // block * rows_of_block, outputs)
        return Stored(shape, np.dtype(dtype), lambda spans: _by_matrix(one, spans, dtype))

    # NF4 packs two codes of 4 bits in a byte, so a block has half as many rows of codes as inputs.
    rows, dtype = (block // 2, np.uint8) if kind == "nf4" else (block, np.int8)
    return Quantized(stored("codes", rows, dtype), stored("scales", 1, np.float32))


def dequantize_params(params: Params, dtype: Any = None) -> Params:
    """Dequantizes all kernels, one matrix at a time, when they are read.

    Args:
      params: Parameters.
      dtype: Of the kernels; None for that of the other parameters.
    """
    dtype = np.dtype(dtype or params["embed"]["weight"].dtype)

    def dequantized(kernel: Any) -> Any:
        return _dequantized_on_reading(kernel, dtype) if is_quantized(kernel) else kernel

    return map_kernels(dequantized, params)


def _dequantized_on_reading(kernel: Quantized, dtype: Any) -> Stored:
    def one(spans: Spans) -> np.ndarray:
        *outer, rows, columns = spans
        blocks, rest = _whole_blocks(rows, kernel.block)

        def part(array: Any) -> np.ndarray:
            # Rows of codes, or of scales, that one block has.
            of_block = array.shape[-2] // (kernel.shape[-2] // kernel.block)
            whole = slice(blocks.start * of_block, blocks.stop * of_block)
            return read_part(array, (*outer, whole, columns))

        made = Quantized(part(kernel.codes), part(kernel.scales))
        return made.dequantized(dtype)[..., rest, :]

    return Stored(kernel.shape, dtype, lambda spans: _by_matrix(one, spans, dtype))


def read_part(array: Any, spans: Spans) -> np.ndarray:
    """Reads a part of an array in a file, or on devices of any process."""
    if isinstance(array, Stored):
        return array.read(spans)
    starts = [np.int32(span.start) for span in spans]
    part = jax.lax.dynamic_slice(array, starts, [span.stop - span.start for span in spans])
    if not part.is_fully_addressable:
        part = multihost_utils.process_allgather(part, tiled=True)
    return np.asarray(part)


def _whole_blocks(rows: slice, of_block: int) -> tuple[slice, slice]:
    """Returns the blocks that hold these rows, and the place of the rows within them."""
    first, last = rows.start // of_block, ceil_div(rows.stop, of_block)
    return slice(first, last), slice(rows.start - first * of_block, rows.stop - first * of_block)


def _by_matrix(one: Any, spans: Spans, dtype: Any) -> np.ndarray:
    """Reads a part of a stack of matrices, making one matrix at a time."""
    *leading, rows, columns = spans
    sizes = [span.stop - span.start for span in spans]
    out = np.empty(sizes, dtype)
    for place in np.ndindex(*sizes[:-2]):
        numbers = [span.start + k for span, k in zip(leading, place, strict=True)]
        at = (slice(number, number + 1) for number in numbers)
        out[place] = one((*at, rows, columns)).reshape(sizes[-2:])
    return out

"""Adapters added into the weights beneath them, on devices or while files are read."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdpo.hub.quantized import dequantize_params, kind_of, read_part
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import LoraParams, merge_lora, merged_kernel
from jaxdpo.model.quantized import map_kernels
from jaxdpo.storage.lazy_array import Spans, Stored


def merge_adapters(params: Params, lora: LoraParams, scale: float) -> Params:
    """Adds adapters into the kernels, which keep their dtype.

    Args:
      params: Parameters; kernels that lie in files or are quantized get their share when they are
        read, those on devices at once.
      lora: Adapters.
      scale: Factor on the adapters' terms.

    Returns:
      The parameters, dequantized.
    """
    dtype = params["embed"]["weight"].dtype
    # A quantized base stays fp32 until the adapters are added: rounded before and after, the sum
    # would lose more of them.
    merged = merge_lora(dequantize_params(params, np.float32), lora, scale, _merged)
    if kind_of(params) == "full":
        return merged
    return map_kernels(lambda kernel: kernel.cast(dtype), merged)


def _merged(kernel: Any, pair: dict[str, Any], scale: float) -> Any:
    """Adds an adapter to a kernel; one that is read by parts gets its share with each part."""
    if not isinstance(kernel, Stored):
        return merged_kernel(kernel, pair, scale)
    # Only the rows of `a` and the columns of `b` that this part of the kernel needs.
    ranks = slice(0, pair["a"].shape[-1])

    def read(spans: Spans) -> np.ndarray:
        *leading, rows, columns = spans
        # The lengths of DoRA run over all inputs, whichever of them are asked for.
        read_rows = slice(0, kernel.shape[-2]) if "m" in pair else rows
        terms = {
            "a": jnp.asarray(read_part(pair["a"], (*leading, read_rows, ranks))),
            "b": jnp.asarray(read_part(pair["b"], (*leading, ranks, columns))),
        }
        if "m" in pair:
            terms["m"] = jnp.asarray(read_part(pair["m"], (*leading, columns)))
        part = jnp.asarray(kernel.read((*leading, read_rows, columns)))
        merged = np.asarray(merged_kernel(part, terms, scale))
        first = rows.start - read_rows.start
        return merged[..., first : first + rows.stop - rows.start, :]

    return replace(kernel, read=read)

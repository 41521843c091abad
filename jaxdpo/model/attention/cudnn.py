"""Attention by cuDNN's flash kernel, on GPUs: no scores in memory, however long the rows are.

cuDNN knows nothing of a row but its length, so every sequence has an attention row of its own
(`BatchShape.unpacked`), and what lies beyond its end is not computed.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import PackedBatch, SequenceGather
from jaxdpo.model.attention.dense import from_sequences, to_sequences
from jaxdpo.model.attention.sharded import on_own_rows
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.layers import Attend


def cudnn_attention(
    batch: PackedBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Attend:
    """Returns the attention of one layer over a batch, for what `cudnn_refuses` does not refuse.

    Args:
      batch: Rows with their `gather` filled in, one sequence a row.
      scale: Factor on the scores.
      window: How many positions back a token sees (itself counted); None for all.
      softcap: Must be None: the kernel has none.
      implementation: "xla" computes the same on any machine.
    """
    assert softcap is None

    def attend_rows(
        q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, layout: SequenceGather
    ) -> jax.Array:
        width = layout.segment.shape[-1]
        segment_NW = layout.segment.reshape(-1, width)
        # An empty row gets a token, so that there is no softmax over nothing.
        lengths_N = jnp.maximum(jnp.sum(segment_NW > 0, axis=-1, dtype=jnp.int32), 1)
        inside_NW11 = (jnp.arange(width)[None] < lengths_N[:, None])[:, :, None, None]

        def inside(x_NWHd: jax.Array) -> jax.Array:
            # Beyond a row's end the kernel may leave anything, NaN too, in outputs and gradients:
            # selected away on both sides of it, as a product with 0 would keep a NaN.
            return jnp.where(inside_NW11, x_NWHd, jnp.zeros((), x_NWHd.dtype))

        q_NWHd, k_NWKd, v_NWKd = (inside(to_sequences(x, layout)) for x in (q_BTHd, k_BTKd, v_BTKd))
        outputs_NWHd = jax.nn.dot_product_attention(
            q_NWHd,
            k_NWKd,
            v_NWKd,
            scale=scale,
            is_causal=True,
            query_seq_lengths=lengths_N,
            key_value_seq_lengths=lengths_N,
            # Keys to the left and to the right of a query's own, which is not counted.
            local_window_size=None if window is None else (window - 1, 0),
            implementation=implementation,
        )
        return from_sequences(inside(outputs_NWHd), layout)

    return on_own_rows(attend_rows, batch.gather)


def cudnn_refuses(model: ModelConfig, dtype: str, capability: float | None) -> str | None:
    """Returns the reason why cuDNN can't compute this model exactly, or None if it can.

    Args:
      model: Architecture.
      dtype: That products are computed in.
      capability: Compute capability of the GPU; None where it is not known.
    """
    attention = model.attention
    if attention.softcap is not None:
        return "it has no soft cap of scores, and the model has one"
    if attention.head_dim > 256 or attention.head_dim % 8:
        return f"heads have {attention.head_dim} channels; it takes multiples of 8 up to 256"
    if attention.head_dim > 128 and capability is not None and capability < 9.0:
        # Its backward pass for wide heads is written for Hopper and later.
        return (
            f"heads have {attention.head_dim} channels; on a GPU of compute capability "
            f"{capability} it takes up to 128"
        )
    if dtype != "bfloat16":
        return f"it computes in bfloat16, and model.compute_dtype is {dtype}"
    return None

"""Attention by JAX's splash kernel, on TPUs: no scores in memory, however long the rows are.

A row's sequences are unpacked into attention rows (`SequenceGather`), and the kernel runs causally
within segments. Windows are static: blocks that lie outside of one cost nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxdpo.data.packing.batch import PackedBatch, SequenceGather
from jaxdpo.devices.sizes import round_up
from jaxdpo.model.attention.dense import from_sequences, to_sequences
from jaxdpo.model.attention.sharded import on_own_rows
from jaxdpo.model.layers import Attend

# Lanes of a TPU's registers: queries and keys of the smallest block.
_LANES = 128
# Larger blocks run faster; 512 is what the fast memory holds for every head size, in fp32 too.
_BLOCKS = (512, 384, 256)


def splash_attention(
    batch: PackedBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Attend:
    """Returns the attention of one layer over a batch; each device does its own rows and heads.

    Scores and softmax are fp32. Queries are scaled beforehand, in their own dtype: bf16 ones are
    rounded once more, unless the scale is a power of two.

    Args:
      batch: Rows with their `gather` filled in.
      scale: Factor on the scores.
      window: How many positions back a token sees (itself counted); None for all.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
      interpret: Whether the kernel is interpreted: slow, and on any machine.
    """

    def attend_rows(
        q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, layout: SequenceGather
    ) -> jax.Array:
        width, channels = layout.index.shape[-1], q_BTHd.shape[-1]
        # The kernel takes rows of whole blocks and heads of whole registers. Added tokens are of
        # segment 0, which no real token sees; added channels are zeros, which change no product.
        block, filled = _block_size(width), _whole_heads(channels)
        places = round_up(width, block)

        def by_head(x_BTHd: jax.Array) -> jax.Array:
            # [B·A, W, H, d] → [N, H, W, d], as the kernel wants it.
            x_NHWd = jnp.swapaxes(to_sequences(x_BTHd, layout), 1, 2)
            return jnp.pad(x_NHWd, ((0, 0), (0, 0), (0, places - width), (0, filled - channels)))

        run = _make_kernel(q_BTHd.shape[2], (places, places), block, window, softcap, interpret)
        segment_NW = layout.segment.reshape(-1, width)
        ids_NW = jnp.pad(segment_NW, ((0, 0), (0, places - width)))
        outputs_NHWd: Any = jax.vmap(run)(
            by_head(q_BTHd * scale), by_head(k_BTKd), by_head(v_BTKd),
            segment_ids=kernel.SegmentIds(ids_NW, ids_NW),
        )  # fmt: skip
        outputs_NWHd = jnp.swapaxes(outputs_NHWd, 1, 2)[:, :width, :, :channels]
        return from_sequences(outputs_NWHd, layout)

    return on_own_rows(attend_rows, batch.gather)


def _block_size(width: int) -> int:
    """Returns the block size that makes attention rows least longer; the largest of those."""
    if width <= _BLOCKS[0]:
        return round_up(width, _LANES)
    return min(_BLOCKS, key=lambda block: (-width % block, -block))


def _whole_heads(channels: int) -> int:
    """Returns the channels of a head that the kernel is known to compile with."""
    return 64 if channels <= 64 else round_up(channels, _LANES)


def _make_kernel(
    heads: int,
    shape: tuple[int, int],
    block: int,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> kernel.SplashAttentionKernel:
    # A window of w sees w − 1 to the left, itself, and nothing to the right.
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    blocks = kernel.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    return kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )

"""Attention over a packed, prefix-shared batch: the kinds that there are, and the plain one.

All take q `[B, T, H, d]`, k and v `[B, T, K, d]`, where head h of q reads kv-head h // (H / K), and
return `[B, T, H, d]`; scores and softmax are fp32. "dense" writes out the mask that defines prefix
sharing: all others are tested against it. "tiles" (tiles.py) goes over the parts of the mask that
hold anything, on every back end; "pallas" is a kernel for GPUs over the same parts. Other kernels
("splash", "cudnn") run ordinary causal sequences, which a row is laid out as at the price of
attending over a prompt once for each of its completions.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import PackedBatch, SequenceGather
from jaxdpo.data.packing.plan import Layout
from jaxdpo.model.layers import Attend

AttentionKind = Literal["dense", "tiles", "splash", "cudnn", "pallas"]
# What each needs a batch to say of its rows beside tokens, pairs and branches.
LAYOUTS: dict[AttentionKind, Layout] = {
    "dense": "plain",
    "tiles": "tiles",
    "pallas": "tiles",
    "splash": "sequences",
    "cudnn": "unpacked",
}


def dense_attention(
    batch: PackedBatch, scale: float, window: jax.Array | None, softcap: float | None = None
) -> Attend:
    """Returns the attention of one layer over a batch, its mask written out.

    Args:
      batch: B rows of T tokens.
      scale: Factor on the scores, usually d^-½.
      window: i32 scalar, how many positions back a token sees (itself counted); None for all.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
    """

    def attend(q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array) -> tuple[jax.Array, None]:
        mask_BTT = sharing_mask(batch)
        if window is not None:
            mask_BTT &= within_window(batch.positions, batch.positions, window)
        return masked_attention(q_BTHd, k_BTKd, v_BTKd, mask_BTT, scale, softcap), None

    return attend


def sharing_mask(batch: PackedBatch) -> jax.Array:
    """Returns which query (second axis) sees which key (last axis), bool `[B, T, T]`.

    A key is seen from its own place to its end: a prompt's by all later tokens of the pair, a
    completion's by those of the same completion (`jaxdpo.data.packing.batch`).
    """
    order_T = jnp.arange(batch.tokens.shape[-1])
    causal_TT = order_T[:, None] >= order_T[None, :]
    return causal_TT[None] & (order_T[None, :, None] < batch.end[:, None, :])


def within_window(
    query_positions_BT: jax.Array, key_positions_BS: jax.Array, window: jax.Array
) -> jax.Array:
    """Returns where a key lies less than `window` positions back, bool `[B, T, S]`.

    Positions count, not places in the row: the rejected completion stands after the chosen one, but
    its positions follow the prompt's.

    Args:
      query_positions_BT: i32, positions of the queries in their sequences.
      key_positions_BS: i32, positions of the keys.
      window: i32 scalar, how many positions back a token sees, itself counted.
    """
    return query_positions_BT[:, :, None] - key_positions_BS[:, None, :] < window


def masked_attention(
    q_BTHd: jax.Array,
    k_BSKd: jax.Array,
    v_BSKd: jax.Array,
    mask_BTS: jax.Array,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """Computes softmax attention of T queries over S keys where the mask is true, in q's dtype.

    A query that sees no key gets the mean of all values, never a NaN.

    Args:
      q_BTHd: Queries of H heads.
      k_BSKd: Keys of K kv-heads; K divides H.
      v_BSKd: Values.
      mask_BTS: bool, which query sees which key.
      scale: Factor on the scores.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
    """
    B, T, H, d = q_BTHd.shape
    K = k_BSKd.shape[2]
    # A score is the product of a query and a key over the channels d; the G = H / K query heads of
    # a group share their keys, which are never copied for it. Summed in fp32: scores near 300 are 2
    # apart in bf16, and rounding them so would move weights by a factor of e.
    scores_BKGTS = jnp.einsum(
        "btkgd,bskd->bkgts",
        q_BTHd.reshape(B, T, K, H // K, d),
        k_BSKd,
        preferred_element_type=jnp.float32,
    )
    scores_BKGTS *= scale
    if softcap is not None:
        scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
    # Not −inf: a row of nothing but −inf, as padding has it, would make NaNs.
    lowest = jnp.finfo(jnp.float32).min
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, lowest)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKd.dtype)
    # Each query's mean of the values over keys s, by weight; then groups and kv-heads are heads.
    outputs_BTKGd = jnp.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKd)
    return outputs_BTKGd.reshape(B, T, H, d)


def to_sequences(x_BTHd: jax.Array, layout: SequenceGather) -> jax.Array:
    """Lays the tokens of B rows out as `[B * A, W]` tokens of whole sequences; trailing axes kept.

    A prompt is copied in front of each of its completions, so gradients of the copies add up.
    """
    x_BAWHd = jax.vmap(lambda row, index: row[index])(x_BTHd, layout.index)
    return x_BAWHd.reshape(-1, *x_BAWHd.shape[2:])


def from_sequences(x_NWHd: jax.Array, layout: SequenceGather) -> jax.Array:
    """Undoes `to_sequences`: of a prompt's two copies, the one before the chosen completion."""
    # Both copies saw the same tokens and hold the same outputs, so either would do.
    rows = layout.index.shape[0]
    x_BSHd = x_NWHd.reshape(rows, -1, *x_NWHd.shape[2:])
    return jax.vmap(lambda row, index: row[index])(x_BSHd, layout.inverse)

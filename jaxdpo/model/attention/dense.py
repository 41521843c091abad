"""Attention over a packed, prefix-shared batch: the kinds that there are, and the plain one.

All take q `[B, T, H, d]`, k and v `[B, T, K, d]`, where head h of q reads kv-head h // (H / K), and
return `[B, T, H, d]`; scores and softmax are fp32. "dense" writes out the mask that defines prefix
sharing: all others are tested against it. "tiles" (tiles.py) goes over the parts of the mask that
hold anything, on every back end. Kernels ("splash", "cudnn") run ordinary causal sequences, which a
row is laid out as at the price of attending over a prompt once for each of its completions.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import PROMPT, PackedBatch, SequenceGather
from jaxdpo.data.packing.plan import Layout
from jaxdpo.model.layers import Attend

AttentionKind = Literal["dense", "tiles", "splash", "cudnn"]
# What each needs a batch to say of its rows.
LAYOUTS: dict[AttentionKind, Layout] = {
    "dense": "plain",
    "tiles": "tiles",
    "splash": "sequences",
    "cudnn": "apart",
}


def dense_attention(
    batch: PackedBatch, scale: float, window: jax.Array | None, softcap: float | None = None
) -> Attend:
    """The attention of one layer over a batch, its mask written out.

    Args:
      batch: R rows of T tokens.
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
    """Who sees whom, bool `[B, T, T]`: same pair, not later, and of the prompt or one's own branch.

    `jaxdpo.data.packing.batch.sharing_mask` on a device.
    """
    order = jnp.arange(batch.tokens.shape[-1])
    same_pair = batch.pair_ids[:, :, None] == batch.pair_ids[:, None, :]
    key_branch = batch.branches[:, None, :]
    visible = (key_branch == PROMPT) | (key_branch == batch.branches[:, :, None])
    return same_pair & visible & (order[:, None] >= order[None, :])[None]


def within_window(
    query_positions_BT: jax.Array, key_positions_BS: jax.Array, window: jax.Array
) -> jax.Array:
    """Whether a key lies less than `window` positions back, bool `[B, T, S]`.

    Positions count, not places in the row: the rejected completion stands after the chosen one, but
    its positions follow the prompt's.
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
    """Softmax attention of T queries over S keys where `mask` is true, in `q`'s dtype.

    A query that sees no key gets the mean of all values, never a NaN.
    """
    B, T, H, d = q_BTHd.shape
    K = k_BSKd.shape[2]
    scores_BKGTS = jnp.einsum(
        "btkgd,bskd->bkgts",
        q_BTHd.reshape(B, T, K, H // K, d),
        k_BSKd,
        preferred_element_type=jnp.float32,
    )
    scores_BKGTS *= scale
    if softcap is not None:
        scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
    lowest = jnp.finfo(jnp.float32).min
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, lowest)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKd.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKd).reshape(B, T, H, d)


def to_sequences(x_BTHd: jax.Array, layout: SequenceGather) -> jax.Array:
    """The tokens of B rows as `[B * A, W]` tokens of whole sequences; trailing axes kept."""
    x_BAWHd = jax.vmap(lambda row, index: row[index])(x_BTHd, layout.index)
    return x_BAWHd.reshape(-1, *x_BAWHd.shape[2:])


def from_sequences(x_NWHd: jax.Array, layout: SequenceGather) -> jax.Array:
    """Undoes `to_sequences`: of a prompt's two copies, the one before the chosen completion."""
    rows = layout.index.shape[0]
    x_BSHd = x_NWHd.reshape(rows, -1, *x_NWHd.shape[2:])
    return jax.vmap(lambda row, index: row[index])(x_BSHd, layout.inverse)

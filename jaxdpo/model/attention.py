"""Attention over a packed, prefix-shared batch: the dense mask that defines it, and by gather.

Both take q `[B, T, H, d]`, k and v `[B, T, K, d]`, with heads h of q sharing kv-head h // (H / K),
and return `[B, T, H, d]`. Scores and softmax are fp32.
"""

import jax
import jax.numpy as jnp

from jaxdpo.data.batch import PROMPT, PackedBatch, SequenceGather

# A window no position difference reaches: what a layer without a window has beside one that has.
NO_WINDOW = 2**30


def masked_attention(
    q_BTHd: jax.Array, k_BSKd: jax.Array, v_BSKd: jax.Array, mask_BTS: jax.Array, scale: float
) -> jax.Array:
    """Softmax attention of T queries over S keys where `mask` is true.

    Args:
      q_BTHd: Queries.
      k_BSKd: Keys.
      v_BSKd: Values.
      mask_BTS: bool, which query sees which key. A query that sees none gets a mean of all values.
      scale: Factor on the scores, usually d^-½.

    Returns:
      `[B, T, H, d]` in `q`'s dtype.
    """
    B, T, H, d = q_BTHd.shape
    K = k_BSKd.shape[2]
    q_BTKGd = q_BTHd.reshape(B, T, K, H // K, d)
    scores_BKGTS = jnp.einsum(
        "btkgd,bskd->bkgts", q_BTKGd, k_BSKd, preferred_element_type=jnp.float32
    )
    lowest = jnp.finfo(jnp.float32).min
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS * scale, lowest)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKd.dtype)
    outputs_BTKGd = jnp.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKd)
    return outputs_BTKGd.reshape(B, T, H, d)


def dense_mask(batch: PackedBatch) -> jax.Array:
    """Who sees whom, bool `[B, T, T]`: same pair, not later, and of the prompt or one's own branch.

    The sentence that defines prefix sharing; `jaxdpo.data.batch` tells it with an example.
    """
    T = batch.tokens.shape[-1]
    order = jnp.arange(T)
    same_pair = batch.pair_ids[:, :, None] == batch.pair_ids[:, None, :]
    key_branch = batch.branches[:, None, :]
    visible = (key_branch == PROMPT) | (key_branch == batch.branches[:, :, None])
    return same_pair & visible & (order[:, None] >= order[None, :])[None]


def within_window(
    query_positions: jax.Array, key_positions: jax.Array, window: jax.Array
) -> jax.Array:
    """Whether a key lies less than `window` positions back, bool `[B, T, S]`.

    Positions are counted, not places in the row: after the prompt they restart for each completion.
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def gather_mask(gather: SequenceGather) -> jax.Array:
    """Causal within each sequence of the gathered rows, bool `[B * A, W, W]`."""
    segment_NW = gather.segment.reshape(-1, gather.segment.shape[-1])
    order = jnp.arange(segment_NW.shape[-1])
    same_segment = segment_NW[:, :, None] == segment_NW[:, None, :]
    return same_segment & (order[:, None] >= order[None, :])[None]

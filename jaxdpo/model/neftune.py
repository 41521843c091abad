"""NEFTune: noise on the embeddings while a model is fine-tuned (Jain et al. 2023, algorithm 1)."""

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import PackedBatch


def embedding_noise(batch: PackedBatch, alpha: float, channels: int, key: jax.Array) -> jax.Array:
    """Draws noise uniform within ± α / √(L D) for a sequence of L tokens of D channels.

    The length of such a vector of noise for a whole sequence is then about α / √3, whatever L and D
    are. TRL takes the L of the padded batch; here it is the sequence's own, as in the paper, so
    that a sequence's noise does not depend on what lies beside it.

    Args:
      batch: B rows of T tokens.
      alpha: α of the paper, which tries 5, 10 and 15.
      channels: D.
      key: A random key.

    Returns:
      f32 `[B, T, D]`, zero at padding.
    """

    def lengths(pair_ids_T: jax.Array) -> jax.Array:
        # f32 [T]: tokens of the pair that each token belongs to. Ids count from 1, 0 is padding.
        ones_T = jnp.ones_like(pair_ids_T, jnp.float32)
        return jax.ops.segment_sum(ones_T, pair_ids_T, pair_ids_T.shape[0] + 1)[pair_ids_T]

    lengths_BT = jax.vmap(lengths)(batch.pair_ids)
    bounds_BT = jnp.where(batch.pair_ids > 0, alpha / jnp.sqrt(lengths_BT * channels), 0.0)
    shape = (*batch.pair_ids.shape, channels)
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0) * bounds_BT[..., None]

"""The decoder with a cache of keys and values: one function for prefill and for decoding.

cache = empty_cache(config, batch=2, slots=64, dtype=jnp.float32)
hidden_BTD, cache = cached_hidden_states(
    config, params, None, prompts_BT, positions_BT, cache, 0, compute)      # prefill
hidden_B1D, cache = cached_hidden_states(
    config, params, None, last_B1, next_positions_B1, cache, T, compute)    # one token more
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.model.attention import masked_attention, within_window
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, attention_scale, layer_windows, run_layers
from jaxdpo.model.lora import LoraParams


class KVCache(NamedTuple):
    """Keys and values of the tokens so far, in S slots.

    Attributes:
      k_LBSKd: Keys, rotated.
      v_LBSKd: Values.
      positions_BS: i32, position of the token in each slot; -1 where there is none.
    """

    k_LBSKd: jax.Array
    v_LBSKd: jax.Array
    positions_BS: jax.Array


def empty_cache(config: ModelConfig, batch: int, slots: int, dtype: Any) -> KVCache:
    """A cache for `batch` sequences of up to `slots` tokens, padding counted."""
    heads, head_dim = config.attention.num_kv_heads, config.attention.head_dim
    shape = (config.num_layers, batch, slots, heads, head_dim)
    empty_BS = jnp.full((batch, slots), -1, jnp.int32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty_BS)


def cached_hidden_states(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    cache: KVCache,
    start: jax.Array | int,
    compute: Compute,
) -> tuple[jax.Array, KVCache]:
    """Hidden states of T more tokens, `[B, T, D]`, and the cache with them in it.

    A token sees the slots with a position from 0 to its own, and within the layer's window.

    Args:
      config: Architecture; static under jit.
      params: Parameters.
      lora: Adapters, or None.
      tokens_BT: i32 token ids, written to slots `start` to `start + T`.
      positions_BT: i32 positions in their sequences; -1 for padding, which no token will see.
      cache: What earlier calls returned.
      start: First slot to write, i32 scalar; `start + T` is at most S.
      compute: Dtype; static under jit. Attention is over the slots, whatever `attention` says.
    """
    scale, windows_L = attention_scale(config), layer_windows(config)
    positions_BS = jax.lax.dynamic_update_slice(cache.positions_BS, positions_BT, (0, start))
    back_BTS = positions_BT[:, :, None] - positions_BS[:, None, :]
    seen_BTS = (positions_BS >= 0)[:, None] & (back_BTS >= 0)

    def attend(q, k, v, layer):
        k_BSKd, v_BSKd = (
            jax.lax.dynamic_update_slice(old[layer], new.astype(old.dtype), (0, start, 0, 0))
            for old, new in ((cache.k_LBSKd, k), (cache.v_LBSKd, v))
        )
        mask = seen_BTS
        if windows_L is not None:
            mask &= within_window(positions_BT, positions_BS, windows_L[layer])
        softcap = config.attention.softcap
        return masked_attention(q, k_BSKd, v_BSKd, mask, scale, softcap), (k, v)

    tokens_and_positions = (tokens_BT, positions_BT)
    # Only the T new keys and values leave the layers; writing them once, after, spares a copy of
    # the whole cache at each token.
    hidden_BTD, (k_LBTKd, v_LBTKd), _ = run_layers(
        config, params, lora, tokens_and_positions, attend, compute
    )
    at = (0, 0, start, 0, 0)
    dtype = cache.k_LBSKd.dtype
    k_LBSKd = jax.lax.dynamic_update_slice(cache.k_LBSKd, k_LBTKd.astype(dtype), at)
    v_LBSKd = jax.lax.dynamic_update_slice(cache.v_LBSKd, v_LBTKd.astype(dtype), at)
    return hidden_BTD, KVCache(k_LBSKd, v_LBSKd, positions_BS)

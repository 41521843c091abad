"""The decoder with a cache of keys and values: packed prompts in, then a token a row at a time.

    cache = empty_cache(config, rows=2, slots=64, dtype=jnp.float32)
    hidden_TD, kv = prefill(config, params, lora, prompts, compute)
    cache = place(cache, kv, starts_B, lengths_B)                             # whole prompts
    hidden_BD, cache = decode(config, params, lora, tokens_B, cache, compute)  # one token more

The cache is a ring that all rows write at the same slot: a row's tokens lie in the slots before
`cache.next`, the latest nearest, wherever that is and whenever the row began. So a token is written
by one update in place, and rows begin and end independently of each other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.model.attention.dense import masked_attention, within_window
from jaxdpo.model.attention.per_layer import attention_scale, layer_windows
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import LayerInputs, Params, run_layers
from jaxdpo.model.lora import LoraParams


class KVCache(NamedTuple):
    """Keys and values of each row's tokens so far, in a ring of S slots.

    Attributes:
      k_BKSd: Keys, rotated, an array a layer.
      v_BKSd: Values, an array a layer.
      lengths_B: i32, tokens of each row; those before its S latest are forgotten.
      next: i32 scalar, the slot that is written next.
    """

    k_BKSd: tuple[jax.Array, ...]
    v_BKSd: tuple[jax.Array, ...]
    lengths_B: jax.Array
    next: jax.Array


class PackedPrompts(NamedTuple):
    """Prompts one after the other in one row of T tokens.

    Attributes:
      tokens_T: i32 token ids.
      positions_T: i32, counted from 0 in each prompt.
      segments_T: i32, which prompt a token is of.
    """

    tokens_T: Any
    positions_T: Any
    segments_T: Any


def empty_cache(config: ModelConfig, rows: int, slots: int, dtype: Any) -> KVCache:
    """Makes a cache without tokens.

    Args:
      config: Architecture.
      rows: B, sequences that are decoded together.
      slots: S, most tokens of a sequence that are remembered.
      dtype: Of keys and values.
    """
    shape = (rows, config.attention.num_kv_heads, slots, config.attention.head_dim)
    # An array a layer and not one of all: a token is then written into each in place, where a stack
    # would be copied whenever a layer of it changes.
    layers = range(config.num_layers)
    k_BKSd, v_BKSd = (tuple(jnp.zeros(shape, dtype) for _ in layers) for _ in "kv")
    return KVCache(k_BKSd, v_BKSd, jnp.zeros(rows, jnp.int32), jnp.int32(0))


def prefill(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    prompts: PackedPrompts,
    compute: Compute,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Returns hidden states of prompts `[T, D]`, and each layer's keys and values `[T, K, d]`.

    Args:
      config: Architecture; static under jit.
      params: Parameters, `unstacked`.
      lora: Adapters, `unstacked`, or None.
      prompts: T tokens.
      compute: Dtype; static under jit. The mask is written out, whatever `attention` says.
    """
    scale, windows_L = attention_scale(config), layer_windows(config)
    positions_1T = prompts.positions_T[None]
    order_T = jnp.arange(prompts.tokens_T.shape[0])
    # Prompts stand one after the other in one row: causal within each, and apart from the others.
    same_TT = prompts.segments_T[:, None] == prompts.segments_T[None]
    seen_1TT = (same_TT & (order_T[:, None] >= order_T[None]))[None]

    def attend(q_1THd, k_1TKd, v_1TKd, layer):
        mask_1TT = seen_1TT
        if windows_L is not None:
            mask_1TT &= within_window(positions_1T, positions_1T, windows_L[layer])
        softcap = config.attention.softcap
        outputs = masked_attention(q_1THd, k_1TKd, v_1TKd, mask_1TT, scale, softcap)
        return outputs, (k_1TKd[0], v_1TKd[0])

    inputs = LayerInputs(prompts.tokens_T[None], positions_1T)
    outputs = run_layers(config, params, lora, inputs, attend, compute)
    return outputs.hidden_BTD[0], outputs.collected


def place(
    cache: KVCache,
    kv: list[tuple[jax.Array, jax.Array]],
    starts_B: jax.Array,
    lengths_B: jax.Array,
) -> KVCache:
    """Begins new sequences in some rows, leaves the others alone, and returns the new cache.

    Args:
      cache: The cache so far.
      kv: Each layer's keys and values of packed prompts, `[T, K, d]`.
      starts_B: i32, where a row's prompt begins among the T tokens; rows may have the same one.
      lengths_B: i32, its tokens, fewer than S; 0 leaves the row alone.
    """
    # A prompt ends in the slot before the next one that is written, so the slot of age a (written a
    # tokens ago) gets the prompt's token a from its end: place start + length − a of the T.
    ages_S = _ages(cache)
    places_BS = (starts_B + lengths_B)[:, None] - ages_S[None]
    of_prompt_BS = (ages_S[None] >= 1) & (ages_S[None] <= lengths_B[:, None])

    def placed(old_BKSd: jax.Array, new_TKd: jax.Array) -> jax.Array:
        # A gather and a selection, instead of a scatter of ragged lengths: one shape for all.
        new_BSKd = new_TKd[jnp.where(of_prompt_BS, places_BS, 0)].astype(old_BKSd.dtype)
        return jnp.where(of_prompt_BS[:, None, :, None], new_BSKd.swapaxes(1, 2), old_BKSd)

    return KVCache(
        tuple(placed(old, k) for old, (k, _) in zip(cache.k_BKSd, kv, strict=True)),
        tuple(placed(old, v) for old, (_, v) in zip(cache.v_BKSd, kv, strict=True)),
        jnp.where(lengths_B > 0, lengths_B, cache.lengths_B),
        cache.next,
    )


def decode(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    tokens_B: jax.Array,
    cache: KVCache,
    compute: Compute,
) -> tuple[jax.Array, KVCache]:
    """Returns hidden states of one more token a row, `[B, D]`, and the cache with it.

    Args:
      config: Architecture; static under jit.
      params: Parameters, `unstacked`.
      lora: Adapters, `unstacked`, or None.
      tokens_B: i32 token ids.
      cache: The cache that earlier calls returned.
      compute: Dtype; static under jit.
    """
    scale, windows_L = attention_scale(config), layer_windows(config)
    ages_S = _ages(cache)
    # The new token has age 0 and sees itself; slots older than the row's tokens are of others.
    seen_BS = ages_S[None] <= cache.lengths_B[:, None]

    def attend(q_B1Hd, k_B1Kd, v_B1Kd, layer):
        # All rows write at the same slot: one slice, updated in place, where a slot for each row
        # would take a scatter.
        at = (0, 0, cache.next, 0)
        k_BKSd, v_BKSd = (
            jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2).astype(old.dtype), at)
            for old, new in ((cache.k_BKSd[layer], k_B1Kd), (cache.v_BKSd[layer], v_B1Kd))
        )
        # Ages are distances in positions, since a row's tokens lie in consecutive slots.
        mask_BS = seen_BS if windows_L is None else seen_BS & (ages_S[None] < windows_L[layer])
        outputs_B1Hd = masked_attention(
            q_B1Hd,
            k_BKSd.swapaxes(1, 2),
            v_BKSd.swapaxes(1, 2),
            mask_BS[:, None],
            scale,
            config.attention.softcap,
        )
        return outputs_B1Hd, (k_BKSd, v_BKSd)

    # The next token's position is the number of tokens before it.
    inputs = LayerInputs(tokens_B[:, None], cache.lengths_B[:, None])
    outputs = run_layers(config, params, lora, inputs, attend, compute)
    k_BKSd, v_BKSd = zip(*outputs.collected, strict=True)
    slots = ages_S.shape[0]
    cache = KVCache(k_BKSd, v_BKSd, cache.lengths_B + 1, (cache.next + 1) % slots)
    return outputs.hidden_BTD[:, 0], cache


def resized(cache: KVCache, slots: int) -> KVCache:
    """Returns a cache with the latest tokens of each row in a ring of another length.

    Args:
      cache: The cache so far.
      slots: S of the new ring, static under jit; rows with fewer tokens than both rings have slots
        are continued as before.
    """
    old = cache.k_BKSd[0].shape[2]
    # The new ring is written next at slot 0, so its slot i holds the token of age S − i, and that
    # lies in the old ring so many slots before its own next. Ages that the old ring does not have
    # wrap around to some other token; no row is long enough to see them.
    ages_S = slots - jnp.arange(slots, dtype=jnp.int32)
    places_S = (cache.next - ages_S) % old
    k_BKSd, v_BKSd = (
        tuple(layer[:, :, places_S] for layer in layers) for layers in (cache.k_BKSd, cache.v_BKSd)
    )
    return KVCache(k_BKSd, v_BKSd, cache.lengths_B, jnp.int32(0))


def _ages(cache: KVCache) -> jax.Array:
    """Returns how many tokens ago each slot was written, i32 `[S]`; 0 for the next slot."""
    slots = cache.k_BKSd[0].shape[2]
    return (cache.next - jnp.arange(slots, dtype=jnp.int32)) % slots

"""The engine's programs on the device: rows begin, and draw tokens until enough have stopped."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.devices.sharding import on_every_device
from jaxdpo.model.cache import KVCache, PackedPrompts, decode, empty_cache, place, prefill
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, logits, unstacked
from jaxdpo.model.lora import LoraParams
from jaxdpo.sampling.draw import DrawConfig, next_tokens


class RowState(NamedTuple):
    """The rows' state on the device.

    Attributes:
      cache: Keys and values.
      logits_BV: Of each row's next token.
      keys_B: A key a row.
      drawn_B: i32, how many tokens were drawn.
      left_B: i32, how many more may be drawn.
      stopped_B: bool, rows without a request under way.
    """

    cache: KVCache
    logits_BV: jax.Array
    keys_B: jax.Array
    drawn_B: jax.Array
    left_B: jax.Array
    stopped_B: jax.Array


class BegunRows(NamedTuple):
    """Requests that begin, by the row each is given; rows of length 0 begin none.

    Attributes:
      starts_B: i32, where the row's prompt begins among the packed prompts.
      lengths_B: i32, its tokens.
      words_B3: u32, what its draws depend on beside the seed (hash and sample).
    """

    starts_B: jax.Array
    lengths_B: jax.Array
    words_B3: jax.Array


unstacked_weights = jax.jit(unstacked, static_argnums=2)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_rows(config: ModelConfig, rows: int, ring: int, dtype: jnp.dtype) -> RowState:
    """Makes rows without requests.

    Args:
      config: Architecture.
      rows: B, how many are decoded together.
      ring: Slots of the cache.
      dtype: Of the cache.
    """
    zeros_B = jnp.zeros(rows, jnp.int32)
    return RowState(
        empty_cache(config, rows, ring, dtype),
        jnp.zeros((rows, config.vocab_size), jnp.float32),
        jax.random.split(jax.random.key(0), rows),
        zeros_B,
        zeros_B,
        jnp.ones(rows, bool),
    )


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="state")
def begin_rows(
    config: ModelConfig,
    weights: tuple[Params, LoraParams | None],
    prompts: PackedPrompts,
    begun: BegunRows,
    max_new_tokens: jax.Array,
    seed: jax.Array,
    state: RowState,
    compute: Compute,
) -> RowState:
    """Computes packed prompts and begins them in the rows that have a length.

    Args:
      config: Architecture.
      weights: Parameters and adapters, `unstacked`.
      prompts: Prompts in one row of T tokens.
      begun: Prompts and keys of the rows.
      max_new_tokens: i32 scalar, most tokens of a completion.
      seed: u32 scalar.
      state: The rows so far; donated.
      compute: Dtype of the activations, and the adapters' scale.
    """
    starts_B, lengths_B = begun.starts_B, begun.lengths_B
    hidden_TD, kv = prefill(config, *weights, prompts, compute)
    # The logits of a completion's first token come from its prompt's last.
    last_BD = hidden_TD[jnp.maximum(starts_B + lengths_B - 1, 0)]
    new_B = lengths_B > 0

    # Of the request alone, and not of its row or its turn: the draws do not change with the others.
    def key_of(words_3: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for word in words_3:
            key = jax.random.fold_in(key, word)
        return key

    return RowState(
        place(state.cache, kv, starts_B, lengths_B),
        jnp.where(new_B[:, None], logits(config, weights[0], last_BD), state.logits_BV),
        jnp.where(new_B, jax.vmap(key_of)(begun.words_B3), state.keys_B),
        jnp.where(new_B, 0, state.drawn_B),
        jnp.where(new_B, max_new_tokens, state.left_B),
        state.stopped_B & ~new_B,
    )


class _Loop(NamedTuple):
    """Carry of the loop: how many tokens a row drew, the tokens `[B, segment]`, and the rows."""

    count: jax.Array
    tokens_BC: jax.Array
    state: RowState


@partial(jax.jit, static_argnames=("config", "draw", "segment", "compute"), donate_argnames="state")
def advance_rows(
    config: ModelConfig,
    weights: tuple[Params, LoraParams | None],
    stop_token_ids: jax.Array,
    wanted: jax.Array,
    state: RowState,
    draw: DrawConfig,
    segment: int,
    compute: Compute,
) -> tuple[RowState, jax.Array, jax.Array, jax.Array]:
    """Draws up to `segment` tokens a row, until `wanted` rows have stopped.

    Args:
      config: Architecture.
      weights: Parameters and adapters, `unstacked`.
      stop_token_ids: i32, tokens that end a completion.
      wanted: i32 scalar, the number of stopped rows that is waited for.
      state: The rows so far; donated.
      draw: Temperature, and how many of the likeliest tokens are kept.
      segment: Most tokens of each row.
      compute: Dtype of the activations, and the adapters' scale.

    Returns:
      The state; the tokens `[B, segment]`, how many of them were drawn, and which rows stopped.
    """

    # `while_loop`: a segment ends as soon as enough rows have, since free rows decode for nothing.
    def going(loop: _Loop) -> jax.Array:
        return (loop.count < segment) & (jnp.sum(loop.state.stopped_B) < wanted)

    def body(loop: _Loop) -> _Loop:
        state = loop.state
        # A key for each token of each row, by its number in the completion.
        keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.drawn_B)
        next_B = next_tokens(state.logits_BV, keys_B, draw)
        hidden_BD, cache = decode(config, *weights, next_B, state.cache, compute)
        # Rows that have stopped go on drawing, unread: all rows take part in every product anyway.
        left_B = state.left_B - 1
        ended_B = jnp.isin(next_B, stop_token_ids) | (left_B <= 0)
        return _Loop(
            loop.count + 1,
            jax.lax.dynamic_update_slice(loop.tokens_BC, next_B[:, None], (0, loop.count)),
            RowState(
                cache,
                logits(config, weights[0], hidden_BD),
                state.keys_B,
                state.drawn_B + 1,
                left_B,
                state.stopped_B | ended_B,
            ),
        )

    # C = segment, of which the first `count` columns come to hold tokens.
    tokens_BC = jnp.zeros((state.stopped_B.shape[0], segment), jnp.int32)
    loop = jax.lax.while_loop(going, body, _Loop(jnp.int32(0), tokens_BC, state))
    return loop.state, *on_every_device((loop.tokens_BC, loop.count, loop.state.stopped_B))

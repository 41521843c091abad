"""The engine's programs on the device: rows begin, and draw tokens until enough have stopped."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.devices.sharding import on_every_device
from jaxdpo.model.cache import (
    KVCache,
    PackedPrompts,
    decode,
    empty_cache,
    place,
    prefill,
    resized,
)
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, logits, unstacked
from jaxdpo.model.lora import LoraParams
from jaxdpo.sampling.draw import RowDraws, next_tokens, row_draws
from jaxdpo.sampling.logprobs import TokenLogprobs, logprobs_of

# Most tokens between two looks at what was drawn. The arrays that tokens come back in are as long,
# and how many of them are drawn is an argument: one program serves every number.
SEGMENT = 64
# Positions of packed prompts whose logits are held at a time while their tokens are scored.
_SCORED_AT_ONCE = 64


class RowState(NamedTuple):
    """The rows' state on the device.

    Attributes:
      cache: Keys and values.
      logits_BV: Of each row's next token.
      keys_B: A key a row.
      draws: How each row's tokens are drawn.
      drawn_B: i32, how many tokens were drawn.
      left_B: i32, how many more may be drawn.
      stopped_B: bool, rows without a request under way.
    """

    cache: KVCache
    logits_BV: jax.Array
    keys_B: jax.Array
    draws: RowDraws
    drawn_B: jax.Array
    left_B: jax.Array
    stopped_B: jax.Array


class BegunRows(NamedTuple):
    """Requests that begin, by the row each is given; rows of length 0 begin none.

    Attributes:
      starts_B: i32, where the row's prompt begins among the packed prompts.
      lengths_B: i32, its tokens.
      limits_B: i32, most tokens of its completion.
      words_B4: u32, what its draws depend on: the seed, two words of a hash of the prompt, and the
        sample's number.
      draws: How its tokens are drawn.
    """

    starts_B: jax.Array
    lengths_B: jax.Array
    limits_B: jax.Array
    words_B4: jax.Array
    draws: RowDraws


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
        row_draws([0.0] * rows, [None] * rows, [1.0] * rows),
        zeros_B,
        zeros_B,
        jnp.ones(rows, bool),
    )


@partial(jax.jit, static_argnames=("config", "compute", "top"), donate_argnames="state")
def begin_rows(
    config: ModelConfig,
    weights: tuple[Params, LoraParams | None],
    prompts: PackedPrompts,
    begun: BegunRows,
    state: RowState,
    compute: Compute,
    top: int = 0,
) -> tuple[RowState, TokenLogprobs | None]:
    """Computes packed prompts and begins them in the rows that have a length.

    Args:
      config: Architecture.
      weights: Parameters and adapters, `unstacked`.
      prompts: Prompts in one row of T tokens.
      begun: Prompts, limits, keys and settings of the rows.
      state: The rows so far; donated.
      compute: Dtype of the activations, and the adapters' scale.
      top: How many of the likeliest tokens' log-probabilities are returned; 0 for none, nor those
        of the prompts' own tokens.

    Returns:
      The rows, and at each place of the prompts `[T]` the log-probabilities of the token after it.
    """
    starts_B, lengths_B = begun.starts_B, begun.lengths_B
    hidden_TD, kv = prefill(config, *weights, prompts, compute)
    # The logits of a completion's first token come from its prompt's last.
    last_BD = hidden_TD[jnp.maximum(starts_B + lengths_B - 1, 0)]
    new_B = lengths_B > 0

    # Of the request alone, and not of its row or its turn: the draws do not change with the others.
    def key_of(words_4: jax.Array) -> jax.Array:
        key = jax.random.key(words_4[0])
        for word in words_4[1:]:
            key = jax.random.fold_in(key, word)
        return key

    begun_rows = RowState(
        place(state.cache, kv, starts_B, lengths_B),
        jnp.where(new_B[:, None], logits(config, weights[0], last_BD), state.logits_BV),
        jnp.where(new_B, jax.vmap(key_of)(begun.words_B4), state.keys_B),
        jax.tree.map(partial(jnp.where, new_B), begun.draws, state.draws),
        jnp.where(new_B, 0, state.drawn_B),
        jnp.where(new_B, begun.limits_B, state.left_B),
        state.stopped_B & ~new_B,
    )
    if not top:
        return begun_rows, None
    next_T = jnp.roll(prompts.tokens_T, -1)
    return begun_rows, on_every_device(_scored(config, weights[0], hidden_TD, next_T, top))


def _scored(
    config: ModelConfig, params: Params, hidden_TD: jax.Array, tokens_T: jax.Array, top: int
) -> TokenLogprobs:
    """Scores a token at every place, a few places at a time: `[T, V]` is never held."""

    def score(place: tuple[jax.Array, jax.Array]) -> TokenLogprobs:
        hidden_D, token = place
        found = logprobs_of(logits(config, params, hidden_D[None]), token[None], top)
        return jax.tree.map(lambda leaf: leaf[0], found)

    return jax.lax.map(score, (hidden_TD, tokens_T), batch_size=_SCORED_AT_ONCE)


class DrawnTokens(NamedTuple):
    """Tokens that rows drew between two looks.

    Attributes:
      tokens_BC: i32; the first `count` columns hold tokens.
      count: i32 scalar.
      stopped_B: bool, rows that have stopped.
      logprobs: Of the tokens, where asked for.
    """

    tokens_BC: jax.Array
    count: jax.Array
    stopped_B: jax.Array
    logprobs: TokenLogprobs | None


class _Loop(NamedTuple):
    """Carry of the loop: how many tokens a row drew, these tokens, and the rows."""

    count: jax.Array
    tokens_BC: jax.Array
    logprobs: TokenLogprobs | None
    state: RowState


def _empty_loop(state: RowState, top: int) -> _Loop:
    # C = SEGMENT, of which the first `count` columns come to hold tokens.
    shape_BC = (state.stopped_B.shape[0], SEGMENT)
    logprobs = None
    if top:
        logprobs = TokenLogprobs(
            jnp.zeros(shape_BC), jnp.zeros((*shape_BC, top), jnp.int32), jnp.zeros((*shape_BC, top))
        )
    return _Loop(jnp.int32(0), jnp.zeros(shape_BC, jnp.int32), logprobs, state)


@partial(jax.jit, static_argnames=("config", "top", "compute"), donate_argnames="state")
def advance_rows(
    config: ModelConfig,
    weights: tuple[Params, LoraParams | None],
    stop_token_ids: jax.Array,
    wanted: jax.Array,
    steps: jax.Array,
    state: RowState,
    top: int,
    compute: Compute,
) -> tuple[RowState, DrawnTokens]:
    """Draws up to `steps` tokens a row, until `wanted` rows have stopped.

    Args:
      config: Architecture.
      weights: Parameters and adapters, `unstacked`.
      stop_token_ids: i32, tokens that end a completion.
      wanted: i32 scalar, the number of stopped rows that is waited for.
      steps: i32 scalar, most tokens of each row, at most `SEGMENT`.
      state: The rows so far; donated.
      top: How many of the likeliest tokens' log-probabilities are returned; 0 for none at all.
      compute: Dtype of the activations, and the adapters' scale.
    """
    top = min(top, config.vocab_size)

    # `while_loop`: it ends as soon as enough rows have stopped, since free rows decode for nothing.
    def going(loop: _Loop) -> jax.Array:
        return (loop.count < steps) & (jnp.sum(loop.state.stopped_B) < wanted)

    def body(loop: _Loop) -> _Loop:
        state = loop.state
        # A key for each token of each row, by its number in the completion.
        keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.drawn_B)
        next_B = next_tokens(state.logits_BV, keys_B, state.draws)
        logprobs = loop.logprobs
        if logprobs is not None:
            found = logprobs_of(state.logits_BV, next_B, top)
            # All three have the tokens' axis second.
            logprobs = jax.tree.map(partial(_written, loop.count), logprobs, found)
        hidden_BD, cache = decode(config, *weights, next_B, state.cache, compute)
        # Rows that have stopped go on drawing, unread: all rows take part in every product anyway.
        left_B = state.left_B - 1
        ended_B = jnp.isin(next_B, stop_token_ids) | (left_B <= 0)
        return _Loop(
            loop.count + 1,
            jax.lax.dynamic_update_slice(loop.tokens_BC, next_B[:, None], (0, loop.count)),
            logprobs,
            RowState(
                cache,
                logits(config, weights[0], hidden_BD),
                state.keys_B,
                state.draws,
                state.drawn_B + 1,
                left_B,
                state.stopped_B | ended_B,
            ),
        )

    loop = jax.lax.while_loop(going, body, _empty_loop(state, top))
    drawn = DrawnTokens(loop.tokens_BC, loop.count, loop.state.stopped_B, loop.logprobs)
    return loop.state, on_every_device(drawn)


def _written(column: jax.Array, whole: jax.Array, new: jax.Array) -> jax.Array:
    """Returns an array `[B, C, ...]` with `new`, `[B, ...]`, in one of its columns."""
    return jax.lax.dynamic_update_slice_in_dim(whole, new[:, None], column, axis=1)


@partial(jax.jit, static_argnames="slots")
def resize_rows(state: RowState, slots: int) -> RowState:
    """Returns the rows with a ring of another length, which must hold every row under way."""
    # Not donated: arrays of another size have no use for the memory of the old ones.
    return state._replace(cache=resized(state.cache, slots))

"""The bodies of the Pallas attention kernels: the work of one program on one block of tokens.

In equations t counts queries and s keys of a tile, though both are `TILE` long. Scores are to base
2, as exp2 is what a GPU computes: 2^(x · log₂ e) = e^x. A reference (`_ref`) is memory that a
program loads from; `lists` are references to a row's `TileLists`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxdpo.data.packing.batch import TILE

_LOG2_E = math.log2(math.e)
# The score where nothing is seen: exp2 of it is 0, and the difference of two is not NaN, as that of
# two infinities would be.
_UNSEEN = -1e30


class KernelStatic(NamedTuple):
    """Constants of the compiled kernels.

    Attributes:
      scale: Factor on the scores.
      window: How many positions back a token sees; None for all.
      softcap: Bound of the scaled scores, or None.
      interpret: Whether the kernels are interpreted.
    """

    scale: float
    window: int | None
    softcap: float | None
    interpret: bool


class BackwardInputs(NamedTuple):
    """The arrays that the backward kernels read beside q, k and v.

    Attributes:
      cotangent: Of the outputs, `[B, T, H, d]`.
      lse: Base-2 log-sum-exp of each query's scores, f32 `[B, H, T]`.
      delta: Cotangent · output of each query, f32 `[B, H, T]`.
    """

    cotangent: Any
    lse: Any
    delta: Any


def forward_kernel(
    static: KernelStatic,
    channels: int,
    lists: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    o_ref: Any,
    lse_ref: Any,
) -> None:
    """Computes the outputs of a block of queries of a head, and their log-sum-exps.

    Args:
      static: Constants of the kernel.
      channels: d, of a head.
      lists: References of the row's `TileLists`.
      q_ref: The block's queries, `[TILE, d]`.
      k_ref: All keys of the row and kv-head, `[T, d]`.
      v_ref: Their values, `[T, d]`.
      o_ref: Where the outputs go, `[TILE, d]`.
      lse_ref: Where the base-2 log-sum-exps go, f32 `[TILE]`.
    """
    block = pl.program_id(0)
    q_td = _load(q_ref, channels)

    def add_tile(number: jax.Array, total: Any) -> Any:
        weighted_td, highest_t, weight_t = total
        keys = lists.keys[number]
        k_sd, v_sd = (_load(ref.at[_span(keys)], channels) for ref in (k_ref, v_ref))
        scores_ts, seen_ts = _scores(static, q_td, k_sd)[0], _seen(static, lists, block, keys)
        scores_ts = jnp.where(seen_ts, scores_ts, _UNSEEN)
        # Sums so far are relative to the highest score so far, and shrink when a higher one comes.
        above_t = jnp.maximum(highest_t, jnp.max(scores_ts, axis=1))
        shrunk_t = jnp.exp2(highest_t - above_t)
        # Where a query has seen nothing yet the highest is `_UNSEEN` itself, and its exp2 were 1.
        exps_ts = jnp.where(seen_ts, jnp.exp2(scores_ts - above_t[:, None]), 0.0)
        weight_t = weight_t * shrunk_t + jnp.sum(exps_ts, axis=1)
        weighted_td = weighted_td * shrunk_t[:, None] + _dot(exps_ts.astype(v_sd.dtype), v_sd)
        return weighted_td, above_t, weight_t

    start = (jnp.zeros(q_td.shape), jnp.full(TILE, _UNSEEN), jnp.zeros(TILE))
    weighted_td, highest_t, weight_t = jax.lax.fori_loop(
        lists.keys_from[block], lists.keys_from[block + 1], add_tile, start
    )
    # Blocks of nothing but padding have no tile, and no weight.
    weight_t = jnp.maximum(weight_t, 1e-30)
    _store(o_ref, weighted_td / weight_t[:, None], channels)
    lse_ref[...] = highest_t + jnp.log2(weight_t)


def dq_kernel(
    static: KernelStatic,
    channels: int,
    lists: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    backward: Any,
    dq_ref: Any,
) -> None:
    """Computes the gradients of a block of queries of a head.

    Args:
      static: Constants of the kernel.
      channels: d, of a head.
      lists: References of the row's `TileLists`.
      q_ref: The block's queries, `[TILE, d]`.
      k_ref: All keys of the row and kv-head, `[T, d]`.
      v_ref: Their values, `[T, d]`.
      backward: References of `BackwardInputs` at the block's queries.
      dq_ref: Where the gradients go, `[TILE, d]`.
    """
    block = pl.program_id(0)
    q_td = _load(q_ref, channels)
    pulled = BackwardInputs(
        _load(backward.cotangent, channels), backward.lse[...], backward.delta[...]
    )

    def add_tile(number: jax.Array, dq_td: jax.Array) -> jax.Array:
        keys = lists.keys[number]
        k_sd, v_sd = (_load(ref.at[_span(keys)], channels) for ref in (k_ref, v_ref))
        seen_ts = _seen(static, lists, block, keys)
        _, dscores_ts = _pulled_back(static, seen_ts, q_td, k_sd, v_sd, pulled)
        # score = q · k: dq of query t is Σ over keys s of dscore · k.
        return dq_td + _dot(dscores_ts.astype(k_sd.dtype), k_sd)

    dq_td = jax.lax.fori_loop(
        lists.keys_from[block], lists.keys_from[block + 1], add_tile, jnp.zeros(q_td.shape)
    )
    _store(dq_ref, dq_td * static.scale, channels)


def dkv_kernel(
    static: KernelStatic,
    channels: int,
    lists: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    backward: Any,
    *gradient_refs: Any,
) -> None:
    """Computes the gradients of a block of keys and values of a kv-head.

    Args:
      static: Constants of the kernel.
      channels: d, of a head.
      lists: References of the row's `TileLists`.
      q_ref: All queries of the row and of the kv-head's G heads, `[T, G, d]`.
      k_ref: The block's keys, `[TILE, d]`.
      v_ref: Their values, `[TILE, d]`.
      backward: References of `BackwardInputs`, whole as the queries.
      gradient_refs: Where the gradients of keys and of values go, `[TILE, d]` each.
    """
    block = pl.program_id(0)
    group = q_ref.shape[1]
    k_sd, v_sd = _load(k_ref, channels), _load(v_ref, channels)

    def add_tile(turn: jax.Array, total: Any) -> Any:
        dk_sd, dv_sd = total
        # Tile after tile, and of each the heads that share these keys, one after the other.
        queries, head = lists.queries[jax.lax.div(turn, group)], jax.lax.rem(turn, group)
        span = _span(queries)
        q_td = _load(q_ref.at[span, head], channels)
        pulled = BackwardInputs(
            _load(backward.cotangent.at[span, head], channels),
            backward.lse[head, span],
            backward.delta[head, span],
        )
        seen_ts = _seen(static, lists, queries, block)
        weights_ts, dscores_ts = _pulled_back(static, seen_ts, q_td, k_sd, v_sd, pulled)
        # output = Σ_s weight · v: dv of key s is Σ over queries t of weight · cotangent.
        dv_sd += _dot(weights_ts.astype(v_sd.dtype).T, pulled.cotangent)
        # score = q · k: dk of key s is Σ over queries t of dscore · q.
        dk_sd += _dot(dscores_ts.astype(q_td.dtype).T, q_td)
        return dk_sd, dv_sd

    first, last = lists.queries_from[block] * group, lists.queries_from[block + 1] * group
    zeros_sd = jnp.zeros(k_sd.shape)
    dk_sd, dv_sd = jax.lax.fori_loop(first, last, add_tile, (zeros_sd, zeros_sd))
    dk_ref, dv_ref = gradient_refs
    _store(dk_ref, dk_sd * static.scale, channels)
    _store(dv_ref, dv_sd, channels)


def _scores(
    static: KernelStatic, q_td: jax.Array, k_sd: jax.Array
) -> tuple[jax.Array, jax.Array | float]:
    """Returns a tile's base-2 scores, and their derivative by scaled products, to base e."""
    scaled_ts = _dot(q_td, k_sd.T) * static.scale
    if static.softcap is None:
        return scaled_ts * _LOG2_E, 1.0
    # c · tanh(x / c) has the derivative 1 − tanh².
    bent_ts = jnp.tanh(scaled_ts / static.softcap)
    return bent_ts * (static.softcap * _LOG2_E), 1.0 - bent_ts * bent_ts


def _pulled_back(
    static: KernelStatic,
    seen_ts: jax.Array,
    q_td: jax.Array,
    k_sd: jax.Array,
    v_sd: jax.Array,
    pulled: BackwardInputs,
) -> tuple[jax.Array, jax.Array]:
    """Returns a tile's attention weights, and the gradients of its scaled products, to base e."""
    scores_ts, slope = _scores(static, q_td, k_sd)
    weights_ts = jnp.where(seen_ts, jnp.exp2(scores_ts - pulled.lse[:, None]), 0.0)
    dweights_ts = _dot(pulled.cotangent, v_sd.T)
    return weights_ts, weights_ts * (dweights_ts - pulled.delta[:, None]) * slope


def _seen(static: KernelStatic, lists: Any, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns who sees whom in the tile of two blocks, bool `[t (query), s (key)]`."""
    places = jnp.arange(TILE)
    query_t1, key_1s = (queries * TILE + places)[:, None], (keys * TILE + places)[None, :]
    seen_ts = (key_1s <= query_t1) & (query_t1 < lists.end[_span(keys)][None, :])
    if static.window is not None:
        # By positions and not by places: the rejected completion's follow the prompt's.
        query_position_t = lists.positions[_span(queries)]
        back_ts = query_position_t[:, None] - lists.positions[_span(keys)][None, :]
        seen_ts &= back_ts < static.window
    return seen_ts


def _span(block: jax.Array) -> Any:
    """Returns the index of a block's tokens."""
    return pl.ds(block * TILE, TILE)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies two matrices; sums are fp32, and so are products of fp32."""
    # Unless told otherwise, a GPU rounds fp32 to the 11 bits of TF32.
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot(x, y, precision=exact, preferred_element_type=jnp.float32)


def _load(ref: Any, channels: int) -> jax.Array:
    """Loads tokens of a head `[TILE, padded]`, with zeros in place of channels that it has not."""
    mask = _real(ref, channels)
    return triton.load(ref, mask=mask, other=None if mask is None else 0.0)


def _store(ref: Any, x: jax.Array, channels: int) -> None:
    """Stores tokens of a head in the reference's dtype, and none of the added channels."""
    triton.store(ref, x.astype(ref.dtype), mask=_real(ref, channels))


def _real(ref: Any, channels: int) -> jax.Array | None:
    """Returns which channels a head has, bool `[1, padded]`; None if it has them all."""
    padded = ref.shape[-1]
    return None if padded == channels else (jnp.arange(padded) < channels)[None, :]

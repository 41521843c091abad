"""Attention by a Pallas kernel on GPUs, over the tiles of a packed row that hold something to see.

FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691) over the same tiles as `tiles.py`, with
everything of a tile in registers: a layer is one kernel forwards, and two and a sum backwards. A
program of a kernel computes one block of `TILE` tokens and is alone to write it, so nothing is added
in an order of chance and the same inputs give the same bits.

In equations t counts queries and s keys of a tile, though both are `TILE` long. Scores are to base
2, as exp2 is what a GPU computes: 2^(x · log₂ e) = e^x.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxdpo.data.packing.batch import TILE, PackedBatch
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.model.attention.sharded import on_own_rows
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.layers import Attend

_LOG2_E = math.log2(math.e)
# The score where nothing is seen: exp2 of it is 0, and the difference of two is not NaN, as that of
# two infinities would be.
_UNSEEN = -1e30
# Channels of the largest head of which a tile's queries, keys and values fit into registers.
_CHANNELS = 256


class _Static(NamedTuple):
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


class TileLists(NamedTuple):
    """The visible tiles of B rows of n blocks, by their queries and by their keys, all i32.

    Block i of queries sees the blocks of keys `keys[keys_from[i] : keys_from[i + 1]]`, and block j
    of keys is seen by `queries[queries_from[j] : queries_from[j + 1]]`.

    Attributes:
      keys_from: `[B, n + 1]`.
      keys: `[B, N]`.
      queries_from: `[B, n + 1]`.
      queries: `[B, N]`.
      end: `[B, n · TILE]`, as in the batch; 0 beyond the row.
      positions: `[B, n · TILE]`, as in the batch.
    """

    keys_from: jax.Array
    keys: jax.Array
    queries_from: jax.Array
    queries: jax.Array
    end: jax.Array
    positions: jax.Array


class _Backward(NamedTuple):
    """What the backward kernels read beside q, k and v.

    Attributes:
      cotangent: Of the outputs, `[B, T, H, d]`.
      lse: Base-2 log-sum-exp of each query's scores, f32 `[B, H, T]`.
      delta: Cotangent · output of each query, f32 `[B, H, T]`.
    """

    cotangent: Any
    lse: Any
    delta: Any


def pallas_attention(
    batch: PackedBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Attend:
    """Returns the attention of one layer over a batch; each device does its own rows and heads.

    Scores and all sums are fp32, whatever the dtype of q, k and v.

    Args:
      batch: Rows with their `tiles` filled in.
      scale: Factor on the scores.
      window: How many positions back a token sees (itself counted); None for all.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
      interpret: Whether the kernels are interpreted: slow, and on any machine.
    """
    static = _Static(scale, window, softcap, interpret)

    def attend_rows(
        q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, lists: TileLists
    ) -> jax.Array:
        q, k, v = (_fill_blocks(x) for x in (q_BTHd, k_BTKd, v_BTKd))
        outputs: Any = _attend(static, q, k, v, lists)
        return outputs[:, : q_BTHd.shape[1]]

    return on_own_rows(attend_rows, tile_lists(batch))


def pallas_refuses(model: ModelConfig, dtype: str) -> str | None:
    """Returns the reason why the kernel does not compute this model, or None if it does."""
    channels = model.attention.head_dim
    if channels > _CHANNELS:
        return f"heads have {channels} channels; it takes up to {_CHANNELS}"
    # Exact products of float32 take no tensor cores, and more registers than there are: compiled
    # for an H100 they spill 1 to 23 kB.
    if dtype != "bfloat16":
        return f"it computes in bfloat16, and model.compute_dtype is {dtype}"
    return None


def tile_lists(batch: PackedBatch) -> TileLists:
    """Lists a batch's tiles for both passes, from `batch.tiles`, whose queries ascend."""
    blocks = ceil_div(batch.tokens.shape[1], TILE)
    queries_BN, keys_BN = batch.tiles[..., 0], batch.tiles[..., 1]
    # Sorted by keys, those of one block keep their order: the backward pass adds in one order too.
    order_BN = jnp.argsort(keys_BN, axis=1, stable=True)

    def firsts(of_tiles_BN: jax.Array) -> jax.Array:
        """Returns where each block's tiles begin: behind all tiles of the blocks before it."""
        # Unused tiles are of block n, behind all others. A comparison with every block, since a
        # search would be a loop of many small kernels.
        before_BnN = of_tiles_BN[:, None, :] < jnp.arange(blocks + 1)[None, :, None]
        return jnp.sum(before_BnN, axis=-1, dtype=jnp.int32)

    return TileLists(
        firsts(queries_BN),
        keys_BN,
        firsts(keys_BN),
        jnp.take_along_axis(queries_BN, order_BN, axis=1),
        _fill_blocks(batch.end),
        _fill_blocks(batch.positions),
    )


def _fill_blocks(x_BT: jax.Array) -> jax.Array:
    """Fills `[B, T, ...]` up with zeros to whole blocks."""
    missing = -x_BT.shape[1] % TILE
    return jnp.pad(x_BT, ((0, 0), (0, missing), *((0, 0),) * (x_BT.ndim - 2)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, lists: TileLists):
    """Attends over whole blocks: q `[B, T, H, d]`, k and v `[B, T, K, d]` → as q."""
    return _attend_fwd(static, q, k, v, lists)[0]


def _attend_fwd(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, lists: TileLists):
    B, T, H, _ = q.shape
    block, whole = _specs(q, k)
    lse_shape = jax.ShapeDtypeStruct((B, H, T), jnp.float32)
    outputs, lse_BHT = _call(
        static,
        _forward_kernel,
        "tile_attention_forward",
        (T // TILE, H, B),
        (lists, q, k, v),
        (_list_specs(lists), block, whole, whole),
        (jax.ShapeDtypeStruct(q.shape, q.dtype), lse_shape),
        (block, _LINE),
    )
    return outputs, (q, k, v, lists, outputs, lse_BHT)


def _attend_bwd(static: _Static, residuals: Any, cotangent_BTHd: jax.Array):
    q, k, v, lists, outputs_BTHd, lse_BHT = residuals
    B, T, H, d = q.shape
    K = k.shape[2]
    block, whole = _specs(q, k)
    # Softmax's derivative takes from each dweight their mean by weight, which is cotangent · output
    # of each query: the channels d are summed.
    delta_BTH = jnp.sum(cotangent_BTHd.astype(jnp.float32) * outputs_BTHd, axis=-1)
    backward = _Backward(cotangent_BTHd, lse_BHT, jnp.swapaxes(delta_BTH, 1, 2))
    dq = _call(
        static,
        _dq_kernel,
        "tile_attention_dq",
        (T // TILE, H, B),
        (lists, q, k, v, backward),
        (_list_specs(lists), block, whole, whole, _Backward(block, _LINE, _LINE)),
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        block,
    )
    # All query heads of a kv-head, in one program: their sum is the key's gradient.
    group = pl.BlockSpec((None, T, H // K, _padded(d)), lambda i, h, b: (b, 0, h, 0))
    lines = pl.BlockSpec((None, H // K, T), lambda i, h, b: (b, h, 0))
    dk, dv = _call(
        static,
        _dkv_kernel,
        "tile_attention_dkv",
        (T // TILE, K, B),
        (lists, q, k, v, backward),
        (_list_specs(lists), group, block, block, _Backward(group, lines, lines)),
        (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        (block, block),
    )
    return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _call(
    static: _Static,
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, int, int],
    inputs: tuple[Any, ...],
    in_specs: tuple[Any, ...],
    out_shape: Any,
    out_specs: Any,
) -> Any:
    """Runs a kernel for each block i, head h and row b."""
    # Two groups of four warps share the registers that a tile of wide heads takes.
    warps = 4 if _padded(inputs[1].shape[-1]) <= 64 else 8
    call = pl.pallas_call(
        functools.partial(kernel, static, inputs[1].shape[-1]),
        out_shape=out_shape,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        # While one tile is multiplied the next is loaded.
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
        interpret=static.interpret,
        name=name,
    )
    return call(*inputs)


# A number of each query of block i, of head h and row b.
_LINE = pl.BlockSpec((None, None, TILE), lambda i, h, b: (b, h, i))


def _specs(q: jax.Array, k: jax.Array) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Returns the parts of `[B, T, heads, d]` that a program reads: block i of a head; all keys.

    All of a row's keys stay in the GPU's memory, from which the program loads a block at a time.
    """
    _, T, H, d = q.shape
    group = H // k.shape[2]
    return (
        pl.BlockSpec((None, TILE, None, _padded(d)), lambda i, h, b: (b, i, h, 0)),
        pl.BlockSpec((None, T, None, _padded(d)), lambda i, h, b: (b, 0, jax.lax.div(h, group), 0)),
    )


def _list_specs(lists: TileLists) -> TileLists:
    """Returns the parts of the lists that a program reads: all of its row's."""
    return TileLists(
        *(pl.BlockSpec((None, leaf.shape[1]), lambda i, h, b: (b, 0)) for leaf in lists)
    )


def _padded(channels: int) -> int:
    """Returns the channels that a program loads of a head: Triton's arrays are powers of two."""
    return max(16, pl.next_power_of_2(channels))


def _forward_kernel(
    static: _Static,
    channels: int,
    lists: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    o_ref: Any,
    lse_ref: Any,
) -> None:
    """Computes the outputs of a block of queries of a head, and their log-sum-exps."""
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


def _dq_kernel(
    static: _Static,
    channels: int,
    lists: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    backward: Any,
    dq_ref: Any,
) -> None:
    """Computes the gradients of a block of queries of a head."""
    block = pl.program_id(0)
    q_td, pulled_td = _load(q_ref, channels), _load(backward.cotangent, channels)
    lse_t, delta_t = backward.lse[...], backward.delta[...]

    def add_tile(number: jax.Array, dq_td: jax.Array) -> jax.Array:
        keys = lists.keys[number]
        k_sd, v_sd = (_load(ref.at[_span(keys)], channels) for ref in (k_ref, v_ref))
        scores_ts, slope = _scores(static, q_td, k_sd)
        seen_ts = _seen(static, lists, block, keys)
        weights_ts = jnp.where(seen_ts, jnp.exp2(scores_ts - lse_t[:, None]), 0.0)
        dweights_ts = _dot(pulled_td, v_sd.T)
        dscores_ts = weights_ts * (dweights_ts - delta_t[:, None]) * slope
        # score = q · k: dq of query t is Σ over keys s of dscore · k.
        return dq_td + _dot(dscores_ts.astype(k_sd.dtype), k_sd)

    dq_td = jax.lax.fori_loop(
        lists.keys_from[block], lists.keys_from[block + 1], add_tile, jnp.zeros(q_td.shape)
    )
    _store(dq_ref, dq_td * static.scale, channels)


def _dkv_kernel(
    static: _Static,
    channels: int,
    lists: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    backward: Any,
    *gradient_refs: Any,
) -> None:
    """Computes the gradients of a block of keys and values of a kv-head."""
    block = pl.program_id(0)
    group = q_ref.shape[1]
    k_sd, v_sd = _load(k_ref, channels), _load(v_ref, channels)

    def add_tile(turn: jax.Array, total: Any) -> Any:
        dk_sd, dv_sd = total
        # Tile after tile, and of each the heads that share these keys, one after the other.
        queries, head = lists.queries[jax.lax.div(turn, group)], jax.lax.rem(turn, group)
        span = _span(queries)
        q_td = _load(q_ref.at[span, head], channels)
        pulled_td = _load(backward.cotangent.at[span, head], channels)
        lse_t, delta_t = backward.lse[head, span], backward.delta[head, span]
        scores_ts, slope = _scores(static, q_td, k_sd)
        seen_ts = _seen(static, lists, queries, block)
        weights_ts = jnp.where(seen_ts, jnp.exp2(scores_ts - lse_t[:, None]), 0.0)
        # output = Σ_s weight · v: dv of key s is Σ over queries t of weight · cotangent.
        dv_sd += _dot(weights_ts.astype(v_sd.dtype).T, pulled_td)
        dweights_ts = _dot(pulled_td, v_sd.T)
        dscores_ts = weights_ts * (dweights_ts - delta_t[:, None]) * slope
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
    static: _Static, q_td: jax.Array, k_sd: jax.Array
) -> tuple[jax.Array, jax.Array | float]:
    """Returns a tile's base-2 scores, and their derivative by scaled products, to base e."""
    scaled_ts = _dot(q_td, k_sd.T) * static.scale
    if static.softcap is None:
        return scaled_ts * _LOG2_E, 1.0
    # c · tanh(x / c) has the derivative 1 − tanh².
    bent_ts = jnp.tanh(scaled_ts / static.softcap)
    return bent_ts * (static.softcap * _LOG2_E), 1.0 - bent_ts * bent_ts


def _seen(static: _Static, lists: Any, queries: jax.Array, keys: jax.Array) -> jax.Array:
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
    # Without a word, fp32 would be rounded to the 11 bits of TF32.
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

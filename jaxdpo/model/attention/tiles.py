"""Attention over the tiles of a packed row that hold something to see, and over no others.

FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 and 4) in plain XLA:
softmax is accumulated tile by tile, and the backward pass forms the scores again. The data says
which tiles there are (`PackedBatch.tiles`), so the work grows with what each pair's tokens see: not
with the square of the row, nor of the longest sequence, and a prompt is attended once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import PROMPT, TILE, PackedBatch
from jaxdpo.devices.sharding import batch_shards
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.model.layers import Attend

# Scores that a device holds at once: 2**21 fp32 numbers, 8 MiB, which stay in a CPU's cache.
_HELD_SCORES = 2**21
# What a score is where nothing is seen: exp of it is 0, and the difference of two is not NaN.
_UNSEEN = -1e30


class _Static(NamedTuple):
    """Scale and soft cap of the scores, and how many tiles are done at once."""

    scale: float
    softcap: float | None
    chunk: int


class _Tokens(NamedTuple):
    """Who the tokens are, i32 `[B, n, t]` in n blocks of t, and which tiles there are.

    Attributes:
      pair_ids: As in the batch.
      branches: As in the batch.
      positions: As in the batch.
      tiles: i32 `[B, N, 2]`, blocks of queries and of keys; n where unused.
      window: i32 scalar, how many positions back a token sees; None for all.
    """

    pair_ids: jax.Array
    branches: jax.Array
    positions: jax.Array
    tiles: jax.Array
    window: jax.Array | None


def tile_attention(
    batch: PackedBatch, scale: float, window: jax.Array | None, softcap: float | None = None
) -> Attend:
    """The attention of one layer over a batch with its `tiles` filled in; scores are fp32.

    Args:
      batch: B rows of T tokens.
      scale: Factor on the scores.
      window: i32 scalar, how many positions back a token sees (itself counted); None for all.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
    """

    def attend(q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array) -> tuple[jax.Array, None]:
        B, T, H, d = q_BTHd.shape
        K = k_BTKd.shape[2]
        rows = max(1, B // batch_shards())
        chunk = max(1, min(_HELD_SCORES // (rows * H * TILE**2), batch.tiles.shape[1]))
        missing = -batch.tiles.shape[1] % chunk
        unused = ceil_div(T, TILE)
        tiles = jnp.pad(batch.tiles, ((0, 0), (0, missing), (0, 0)), constant_values=unused)
        pair_ids, branches = _blocks(batch.pair_ids), _blocks(batch.branches)
        tokens = _Tokens(pair_ids, branches, _blocks(batch.positions), tiles, window)
        q_BnKGtd = jnp.moveaxis(_blocks(q_BTHd.reshape(B, T, K, H // K, d)), 2, 4)
        k_BnKtd, v_BnKtd = (jnp.moveaxis(_blocks(x), 2, 3) for x in (k_BTKd, v_BTKd))
        static = _Static(scale, softcap, chunk)
        outputs_BnKGtd: Any = _attend(static, q_BnKGtd, k_BnKtd, v_BnKtd, tokens)
        outputs_BntHd = jnp.moveaxis(outputs_BnKGtd, 4, 2).reshape(B, -1, H, d)
        return outputs_BntHd[:, :T], None

    return attend


def _blocks(x_BT: jax.Array) -> jax.Array:
    """`[B, T, ...]` → `[B, n, t, ...]`, filled with zeros: padding of pair 0."""
    missing = -x_BT.shape[1] % TILE
    padded = jnp.pad(x_BT, ((0, 0), (0, missing), *((0, 0),) * (x_BT.ndim - 2)))
    return padded.reshape(x_BT.shape[0], -1, TILE, *x_BT.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, tokens: _Tokens):
    """q `[B, n, K, G, t, d]`, k and v `[B, n, K, t, d]` → `[B, n, K, G, t, d]`."""
    return _attend_fwd(static, q, k, v, tokens)[0]


def _attend_fwd(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, tokens: _Tokens):
    def add_tiles(step: jax.Array, total: Any) -> Any:
        weighted, highest, weight = total
        queries, keys = _tiles_of(static, tokens, step)
        scores = _seen_scores(static, q, k, tokens, queries, keys)[0]
        above = _scatter_max(highest, queries, scores.max(-1))
        exps = jnp.exp(scores - _take(above, queries)[..., None])
        shrunk = jnp.exp(highest - above)
        weight = _scatter_add(weight * shrunk, queries, exps.sum(-1))
        values = _einsum("bckgts,bcksd->bckgtd", exps.astype(v.dtype), _take(v, keys))
        return _scatter_add(weighted * shrunk[..., None], queries, values), above, weight

    zeros = jnp.zeros(q.shape[:-1])
    start = (jnp.zeros(q.shape), zeros + _UNSEEN, zeros)
    weighted, highest, weight = jax.lax.fori_loop(0, _steps(static, tokens), add_tiles, start)
    # Blocks of nothing but padding have no tile, and no weight.
    weight = jnp.maximum(weight, 1e-30)
    outputs = (weighted / weight[..., None]).astype(q.dtype)
    return outputs, (q, k, v, tokens, outputs, highest + jnp.log(weight))


def _attend_bwd(static: _Static, residuals: Any, cotangent: jax.Array):
    q, k, v, tokens, outputs, lse = residuals
    delta = jnp.sum(cotangent.astype(jnp.float32) * outputs, axis=-1)

    def add_tiles(step: jax.Array, total: Any) -> Any:
        dq, dk, dv = total
        queries, keys = _tiles_of(static, tokens, step)
        scores, slope = _seen_scores(static, q, k, tokens, queries, keys)
        weights = jnp.exp(scores - _take(lse, queries)[..., None])
        pulled = _take(cotangent, queries)
        dv_tile = _einsum("bckgts,bckgtd->bcksd", weights.astype(v.dtype), pulled)
        dweights = _einsum("bckgtd,bcksd->bckgts", pulled, _take(v, keys))
        dscores = weights * (dweights - _take(delta, queries)[..., None]) * slope
        dscores = dscores.astype(q.dtype)
        dq_tile = _einsum("bckgts,bcksd->bckgtd", dscores, _take(k, keys))
        dk_tile = _einsum("bckgts,bckgtd->bcksd", dscores, _take(q, queries))
        return (
            _scatter_add(dq, queries, dq_tile),
            _scatter_add(dk, keys, dk_tile),
            _scatter_add(dv, keys, dv_tile),
        )

    start = tuple(jnp.zeros(x.shape) for x in (q, k, v))
    gradients = jax.lax.fori_loop(0, _steps(static, tokens), add_tiles, start)
    dq, dk, dv = (g.astype(x.dtype) for g, x in zip(gradients, (q, k, v), strict=True))
    return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _steps(static: _Static, tokens: _Tokens) -> jax.Array:
    """How often `chunk` tiles are done: of the row that has most; the rest cost nothing."""
    used_B = jnp.sum(tokens.tiles[..., 0] < tokens.pair_ids.shape[1], axis=1)
    return ceil_div(jnp.max(used_B), static.chunk)


def _tiles_of(static: _Static, tokens: _Tokens, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks of queries and of keys of this step's tiles, i32 `[B, c]` each."""
    chunk = static.chunk
    tiles = jax.lax.dynamic_slice_in_dim(tokens.tiles, step * chunk, chunk, axis=1)
    return tiles[..., 0], tiles[..., 1]


def _seen_scores(
    static: _Static,
    q: jax.Array,
    k: jax.Array,
    tokens: _Tokens,
    queries: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array | float]:
    """Scores of tiles, f32 `[B, c, K, G, t, t]`, and their derivative by the bare products."""
    scores = _einsum("bckgtd,bcksd->bckgts", _take(q, queries), _take(k, keys)) * static.scale
    slope: jax.Array | float = static.scale
    if static.softcap is not None:
        bent = jnp.tanh(scores / static.softcap)
        scores, slope = static.softcap * bent, static.scale * (1.0 - bent * bent)
    seen = _seen(tokens, queries, keys)[:, :, None, None]
    return jnp.where(seen, scores, _UNSEEN), slope


def _seen(tokens: _Tokens, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """The sentence of `jaxdpo.data.packing.batch` for tiles, bool `[B, c, t (query), t (key)]`."""

    def of_both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _take(x, queries)[..., :, None], _take(x, keys)[..., None, :]

    (pair, key_pair), (branch, key_branch) = of_both(tokens.pair_ids), of_both(tokens.branches)
    rows, blocks, size = tokens.pair_ids.shape
    places_nt = jnp.arange(blocks * size).reshape(1, blocks, size)
    place, key_place = of_both(jnp.broadcast_to(places_nt, (rows, blocks, size)))
    seen = (pair == key_pair) & (place >= key_place)
    seen &= (key_branch == PROMPT) | (key_branch == branch)
    if tokens.window is not None:
        position, key_position = of_both(tokens.positions)
        seen &= position - key_position < tokens.window
    return seen


def _einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _take(x: jax.Array, blocks: jax.Array) -> jax.Array:
    """`[B, n, ...]` at i32 `[B, c]` → `[B, c, ...]`; an unused tile's values are of no use."""
    return jax.vmap(lambda row, index: row.at[index].get(mode="clip"))(x, blocks)


def _scatter_add(x: jax.Array, blocks: jax.Array, updates: jax.Array) -> jax.Array:
    """Adds `[B, c, ...]` to `[B, n, ...]` at the blocks; unused tiles' updates are dropped."""
    return jax.vmap(lambda row, index, new: row.at[index].add(new, mode="drop"))(x, blocks, updates)


def _scatter_max(x: jax.Array, blocks: jax.Array, updates: jax.Array) -> jax.Array:
    return jax.vmap(lambda row, index, new: row.at[index].max(new, mode="drop"))(x, blocks, updates)

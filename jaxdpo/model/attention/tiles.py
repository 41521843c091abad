"""Attention over the tiles of a packed row that hold something to see, and over no others.

FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 and 4) in plain XLA:
softmax is accumulated tile by tile, and the backward pass forms the scores again. The data says
which tiles there are (`PackedBatch.tiles`), so the work grows with what each pair's tokens see: not
with the square of the row, nor of the longest sequence, and a prompt is attended once.

A row of T tokens is n blocks of t = `TILE`; a tile is a block of queries by a block of keys, and c
tiles of every row are computed at once. In equations t counts queries and s keys, though both are
`TILE` long. Heads are grouped: K kv-heads with G query heads each.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import TILE, PackedBatch
from jaxdpo.devices.sharding import batch_shards, current_platform
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.model.layers import Attend

# Scores that a device holds at once, in fp32. Those of a CPU, 8 MiB, stay in its cache. On other
# devices each turn costs launches: 256 MiB make it a few turns a layer.
_HELD_SCORES = {"cpu": 2**21, "gpu": 2**26, "tpu": 2**26}
# The score where nothing is seen: exp of it is 0, and the difference of two is not NaN, as that of
# two infinities would be.
_UNSEEN = -1e30


class _Static(NamedTuple):
    """Constants of the compiled program.

    Attributes:
      scale: Factor on the scores.
      softcap: Bound of the scaled scores, or None.
      chunk: How many tiles of each row are computed at once.
      all_turns: Whether all tiles that a row may have are computed, not only those that it has.
    """

    scale: float
    softcap: float | None
    chunk: int
    all_turns: bool


class _Tokens(NamedTuple):
    """Places of the tokens, i32 `[B, n, t]` in n blocks of t, and the tiles there are.

    Attributes:
      end: As in the batch.
      positions: As in the batch.
      tiles: i32 `[B, N, 2]`, blocks of queries and of keys, by the queries'; n where unused.
      window: i32 scalar, how many positions back a token sees; None for all.
    """

    end: jax.Array
    positions: jax.Array
    tiles: jax.Array
    window: jax.Array | None


def tile_attention(
    batch: PackedBatch, scale: float, window: jax.Array | None, softcap: float | None = None
) -> Attend:
    """Returns the attention of one layer over a batch with its `tiles` filled in.

    Scores and their sums are fp32, whatever the dtype of q, k and v.

    Args:
      batch: B rows of T tokens.
      scale: Factor on the scores.
      window: i32 scalar, how many positions back a token sees (itself counted); None for all.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
    """

    def attend(q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array) -> tuple[jax.Array, None]:
        B, T, H, d = q_BTHd.shape
        K = k_BTKd.shape[2]
        # A device holds its share of the rows, and a tile's scores for each of its heads.
        rows, platform = max(1, B // batch_shards()), current_platform()
        chunk = _HELD_SCORES[platform] // (rows * H * TILE**2)
        chunk = max(1, min(chunk, batch.tiles.shape[1]))
        # Padded to whole chunks with tiles of the block after the last, which is none: reads at it
        # are clipped and writes dropped.
        missing = -batch.tiles.shape[1] % chunk
        unused = ceil_div(T, TILE)
        tiles_BN2 = jnp.pad(batch.tiles, ((0, 0), (0, missing), (0, 0)), constant_values=unused)
        tokens = _Tokens(_blocks(batch.end), _blocks(batch.positions), tiles_BN2, window)
        # Heads before tokens, so that each head's tile is one matrix product.
        q_BnKGtd = jnp.moveaxis(_blocks(q_BTHd.reshape(B, T, K, H // K, d)), 2, 4)
        k_BnKtd, v_BnKtd = (jnp.moveaxis(_blocks(x), 2, 3) for x in (k_BTKd, v_BTKd))
        # A loop whose number of turns is data stops an accelerator at each turn, until the host
        # has read whether to go on. A CPU is its own host, and saves the turns.
        static = _Static(scale, softcap, chunk, all_turns=platform != "cpu")
        outputs_BnKGtd: Any = _attend(static, q_BnKGtd, k_BnKtd, v_BnKtd, tokens)
        outputs_BTHd = jnp.moveaxis(outputs_BnKGtd, 4, 2).reshape(B, -1, H, d)
        return outputs_BTHd[:, :T], None

    return attend


def _blocks(x_BT: jax.Array) -> jax.Array:
    """Cuts `[B, T, ...]` into `[B, n, t, ...]`, filled up with zeros: an end of 0 is never seen."""
    missing = -x_BT.shape[1] % TILE
    padded = jnp.pad(x_BT, ((0, 0), (0, missing), *((0, 0),) * (x_BT.ndim - 2)))
    return padded.reshape(x_BT.shape[0], -1, TILE, *x_BT.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, tokens: _Tokens):
    """Attends over all tiles: q `[B, n, K, G, t, d]`, k and v `[B, n, K, t, d]` → as q.

    The derivative is written by hand: JAX's own would keep every step's scores, which is all that
    tiles are to avoid, and can't go backwards through a loop whose length the data decides.
    """
    return _attend_fwd(static, q, k, v, tokens)[0]


def _attend_fwd(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, tokens: _Tokens):
    def add_tiles(turn: jax.Array, total: Any) -> Any:
        weighted_BnKGtd, highest_BnKGt, weight_BnKGt = total
        queries_Bc, keys_Bc = _tiles_of(static, tokens, turn)
        scores_BcKGts = _seen_scores(static, q, k, tokens, queries_Bc, keys_Bc)[0]
        # Softmax over keys that come a tile at a time (algorithm 1): sums so far are relative to
        # the highest score so far, and shrink by exp(old − new) when a higher one comes.
        above_BnKGt = _scatter_max(highest_BnKGt, queries_Bc, scores_BcKGts.max(-1))
        exps_BcKGts = jnp.exp(scores_BcKGts - _take(above_BnKGt, queries_Bc)[..., None])
        # Tiles come by their block of queries, so that of this turn's blocks only the first can
        # have sums from turns before. To shrink it alone leaves the rest of the sums where it is.
        first_B1 = queries_Bc[:, :1]
        shrunk_B1KGt = jnp.exp(_take(highest_BnKGt, first_B1) - _take(above_BnKGt, first_B1))
        weight_BnKGt = _shrink(weight_BnKGt, first_B1, shrunk_B1KGt)
        weighted_BnKGtd = _shrink(weighted_BnKGtd, first_B1, shrunk_B1KGt[..., None])
        # Several of these tiles may be of one block of queries: scattered, they add up.
        weight_BnKGt = _scatter_add(weight_BnKGt, queries_Bc, exps_BcKGts.sum(-1))
        # Σ over keys s of weight · value, for each query t of each head.
        values_BcKGtd = _einsum(
            "bckgts,bcksd->bckgtd", exps_BcKGts.astype(v.dtype), _take(v, keys_Bc)
        )
        weighted_BnKGtd = _scatter_add(weighted_BnKGtd, queries_Bc, values_BcKGtd)
        return weighted_BnKGtd, above_BnKGt, weight_BnKGt

    zeros_BnKGt = jnp.zeros(q.shape[:-1])
    start = (jnp.zeros(q.shape), zeros_BnKGt + _UNSEEN, zeros_BnKGt)
    weighted_BnKGtd, highest_BnKGt, weight_BnKGt = _each_turn(static, tokens, add_tiles, start)
    # Blocks of nothing but padding have no tile, and no weight.
    weight_BnKGt = jnp.maximum(weight_BnKGt, 1e-30)
    outputs_BnKGtd = (weighted_BnKGtd / weight_BnKGt[..., None]).astype(q.dtype)
    # Of all the scores, the backward pass needs but their log-sum-exp for each query.
    lse_BnKGt = highest_BnKGt + jnp.log(weight_BnKGt)
    return outputs_BnKGtd, (q, k, v, tokens, outputs_BnKGtd, lse_BnKGt)


def _attend_bwd(static: _Static, residuals: Any, cotangent_BnKGtd: jax.Array):
    q, k, v, tokens, outputs_BnKGtd, lse_BnKGt = residuals
    # Softmax's derivative takes from each dweight their mean by weight, Σ_s weight · dweight. That
    # is cotangent · output for each query, so it is known before any tile is (algorithm 4, line 4).
    delta_BnKGt = jnp.sum(cotangent_BnKGtd.astype(jnp.float32) * outputs_BnKGtd, axis=-1)

    def add_tiles(turn: jax.Array, total: Any) -> Any:
        dq_BnKGtd, dk_BnKtd, dv_BnKtd = total
        queries_Bc, keys_Bc = _tiles_of(static, tokens, turn)
        scores_BcKGts, slope_BcKGts = _seen_scores(static, q, k, tokens, queries_Bc, keys_Bc)
        # With the log-sum-exp of all keys a tile's weights are final at once: no running maximum.
        weights_BcKGts = jnp.exp(scores_BcKGts - _take(lse_BnKGt, queries_Bc)[..., None])
        pulled_BcKGtd = _take(cotangent_BnKGtd, queries_Bc)
        # output = Σ_s weight · v, so dv of key s is Σ weight · cotangent over the queries t that
        # see it and over the G heads that share it.
        dv_BcKtd = _einsum("bckgts,bckgtd->bcksd", weights_BcKGts.astype(v.dtype), pulled_BcKGtd)
        # And dweight of (t, s) is cotangent · v, over the head's channels d.
        dweights_BcKGts = _einsum("bckgtd,bcksd->bckgts", pulled_BcKGtd, _take(v, keys_Bc))
        # Through softmax, the soft cap and the scale, to the bare products q · k. Where nothing is
        # seen the weight is 0, and with it all that follows.
        centred_BcKGts = dweights_BcKGts - _take(delta_BnKGt, queries_Bc)[..., None]
        dscores_BcKGts = (weights_BcKGts * centred_BcKGts * slope_BcKGts).astype(q.dtype)
        # score = q · k: dq of query t is Σ over keys s of dscore · k ...
        dq_BcKGtd = _einsum("bckgts,bcksd->bckgtd", dscores_BcKGts, _take(k, keys_Bc))
        # ... and dk of key s is Σ of dscore · q over the queries t and the G heads.
        dk_BcKtd = _einsum("bckgts,bckgtd->bcksd", dscores_BcKGts, _take(q, queries_Bc))
        return (
            _scatter_add(dq_BnKGtd, queries_Bc, dq_BcKGtd),
            _scatter_add(dk_BnKtd, keys_Bc, dk_BcKtd),
            _scatter_add(dv_BnKtd, keys_Bc, dv_BcKtd),
        )

    # Sums over tiles are fp32: a key seen by thousands of queries gets as many small terms.
    start = tuple(jnp.zeros(x.shape) for x in (q, k, v))
    gradients = _each_turn(static, tokens, add_tiles, start)
    dq_BnKGtd, dk_BnKtd, dv_BnKtd = (
        gradient.astype(x.dtype) for gradient, x in zip(gradients, (q, k, v), strict=True)
    )
    return dq_BnKGtd, dk_BnKtd, dv_BnKtd, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _each_turn(
    static: _Static, tokens: _Tokens, add_tiles: Callable[[jax.Array, Any], Any], start: Any
) -> Any:
    """Runs `add_tiles(turn, total)` for every turn, from `start` on."""
    count = tokens.tiles.shape[1] // static.chunk if static.all_turns else _turns(static, tokens)
    return jax.lax.fori_loop(0, count, add_tiles, start)


def _turns(static: _Static, tokens: _Tokens) -> jax.Array:
    """Returns how many chunks of tiles the row with most of them has; the rest cost nothing."""
    used_B = jnp.sum(tokens.tiles[..., 0] < tokens.end.shape[1], axis=1)
    return ceil_div(jnp.max(used_B), static.chunk)


def _tiles_of(static: _Static, tokens: _Tokens, turn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the blocks of queries and of keys of this turn's tiles, i32 `[B, c]` each."""
    chunk = static.chunk
    tiles_Bc2 = jax.lax.dynamic_slice_in_dim(tokens.tiles, turn * chunk, chunk, axis=1)
    return tiles_Bc2[..., 0], tiles_Bc2[..., 1]


def _seen_scores(
    static: _Static,
    q: jax.Array,
    k: jax.Array,
    tokens: _Tokens,
    queries_Bc: jax.Array,
    keys_Bc: jax.Array,
) -> tuple[jax.Array, jax.Array | float]:
    """Returns the tiles' scores, f32 `[B, c, K, G, t, s]`, and their derivative by q · k."""
    products_BcKGts = _einsum("bckgtd,bcksd->bckgts", _take(q, queries_Bc), _take(k, keys_Bc))
    scores_BcKGts = products_BcKGts * static.scale
    slope: jax.Array | float = static.scale
    if static.softcap is not None:
        # c · tanh(x / c) has the derivative 1 − tanh², and x the derivative `scale`.
        bent_BcKGts = jnp.tanh(scores_BcKGts / static.softcap)
        scores_BcKGts = static.softcap * bent_BcKGts
        slope = static.scale * (1.0 - bent_BcKGts * bent_BcKGts)
    seen_Bc11ts = _seen(tokens, queries_Bc, keys_Bc)[:, :, None, None]
    return jnp.where(seen_Bc11ts, scores_BcKGts, _UNSEEN), slope


def _seen(tokens: _Tokens, queries_Bc: jax.Array, keys_Bc: jax.Array) -> jax.Array:
    """Returns who sees whom in each tile, bool `[B, c, t (query), s (key)]`."""
    places_t = jnp.arange(TILE)
    # A block's number, times its size, is the place of its first token in the row.
    place_Bct1 = (queries_Bc[..., None] * TILE + places_t[None, None])[..., None]
    key_place_Bc1s = (keys_Bc[..., None] * TILE + places_t[None, None])[..., None, :]
    key_end_Bc1s = _take(tokens.end, keys_Bc)[..., None, :]
    seen_Bcts = (key_place_Bc1s <= place_Bct1) & (place_Bct1 < key_end_Bc1s)
    if tokens.window is not None:
        # By positions and not by places: the rejected completion's follow the prompt's.
        position_Bct1 = _take(tokens.positions, queries_Bc)[..., :, None]
        key_position_Bc1s = _take(tokens.positions, keys_Bc)[..., None, :]
        seen_Bcts &= position_Bct1 - key_position_Bc1s < tokens.window
    return seen_Bcts


def _einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    # Factors stay in bf16, which matrix units multiply fast; sums are fp32.
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _take(x: jax.Array, blocks_Bc: jax.Array) -> jax.Array:
    """Takes blocks of `[B, n, ...]` → `[B, c, ...]`; an unused tile's values are of no use."""
    return jax.vmap(lambda row, index: row.at[index].get(mode="clip"))(x, blocks_Bc)


def _scatter_add(x: jax.Array, blocks_Bc: jax.Array, updates: jax.Array) -> jax.Array:
    """Adds `[B, c, ...]` to `[B, n, ...]` at the blocks; unused tiles' updates are dropped."""

    def add(row: jax.Array, index: jax.Array, new: jax.Array) -> jax.Array:
        return row.at[index].add(new, mode="drop")

    return jax.vmap(add)(x, blocks_Bc, updates)


def _shrink(x: jax.Array, blocks_Bc: jax.Array, factors: jax.Array) -> jax.Array:
    """Multiplies blocks of `[B, n, ...]`, in place where the compiler can."""

    def shrink(row: jax.Array, index: jax.Array, factor: jax.Array) -> jax.Array:
        return row.at[index].multiply(factor, mode="drop")

    return jax.vmap(shrink)(x, blocks_Bc, factors)


def _scatter_max(x: jax.Array, blocks_Bc: jax.Array, updates: jax.Array) -> jax.Array:
    """Raises `[B, n, ...]` at the blocks to `[B, c, ...]`, as `_scatter_add` adds."""

    def rise(row: jax.Array, index: jax.Array, new: jax.Array) -> jax.Array:
        return row.at[index].max(new, mode="drop")

    return jax.vmap(rise)(x, blocks_Bc, updates)

"""The visible tiles of a batch's rows, listed both ways, as kernels read them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import TILE, PackedBatch
from jaxdpo.devices.sizes import ceil_div


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
        fill_blocks(batch.end),
        fill_blocks(batch.positions),
    )


def fill_blocks(x_BT: jax.Array) -> jax.Array:
    """Fills `[B, T, ...]` up with zeros to whole blocks."""
    missing = -x_BT.shape[1] % TILE
    return jnp.pad(x_BT, ((0, 0), (0, missing), *((0, 0),) * (x_BT.ndim - 2)))

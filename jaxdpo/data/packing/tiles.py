"""The tiles of a packed row that hold something to see: a list for one row, a count for many.

A tile is a block of `TILE` queries by one of `TILE` keys; attention computes visible ones alone.
"""

from collections.abc import Sequence

import numpy as np

from jaxdpo.data.packing.batch import TILE
from jaxdpo.devices.sizes import ceil_div


def visible_tiles(
    lengths_P3: np.ndarray | Sequence[Sequence[int]], share_prefix: bool, row_length: int
) -> np.ndarray:
    """Lists the tiles of one row in which a query sees a key.

    Args:
      lengths_P3: Tokens of prompt, chosen and rejected of the row's pairs, in order.
      share_prefix: Whether a prompt is laid out once for its two completions.
      row_length: Tokens of the row.

    Returns:
      i32 `[n, 2]`: blocks of queries and of keys, by the queries'.
    """
    blocks = ceil_div(row_length, TILE)
    seen = np.zeros((blocks, blocks), bool)
    start = 0

    def see(query: int, key: int, last_key: int, last: int) -> None:
        # All blocks that the two ranges touch, though only a part of the first and the last may
        # be theirs: a tile is computed whole or not at all.
        if last > query and last_key > key:
            keys = slice(key // TILE, (last_key - 1) // TILE + 1)
            seen[query // TILE : (last - 1) // TILE + 1, keys] = True

    for prompt, chosen, rejected in np.asarray(lengths_P3).tolist():
        once = share_prefix or not rejected
        for first, second in [(chosen, rejected)] if once else [(chosen, 0), (rejected, 0)]:
            own = start + prompt
            end = own + first + second
            # The pair's own three parts of the mask's sentence: everyone sees the prompt, and each
            # completion itself. The other completion's blocks stay unseen where they are whole.
            see(start, start, own, end)
            see(own, own, own + first, own + first)
            see(own + first, own + first, end, end)
            start = end
    # Causality takes away the blocks above the diagonal, which the ranges have touched.
    return np.argwhere(np.tril(seen)).astype(np.int32)


def count_tiles(lengths_N3: np.ndarray, start_N: np.ndarray, share_prefix: bool) -> np.ndarray:
    """Counts the tiles that each pair adds to its row.

    Over a row they are as many as `visible_tiles` lists. The shape of a run needs their number in
    millions of rows, and never the tiles themselves.

    A pair counts the blocks of queries that begin inside it. In the block that it begins in the
    middle of, it sees nothing but that block itself, which the pair before it has counted.

    Args:
      lengths_N3: i64 `[N, 3]`, tokens of prompt, chosen and rejected; only the last may be 0.
      start_N: i64 `[N]`, where each pair begins in its row.
      share_prefix: Whether a prompt is laid out once for its two completions.

    Returns:
      i64 `[N]`.
    """
    prompt, chosen, rejected = lengths_N3.T
    own = start_N + prompt
    second = own + chosen
    # Without sharing a pair is two pairs with one completion each.
    if share_prefix:
        return _count(start_N, own, second, second + rejected)
    again = second + prompt
    alone = _count(second, again, again + rejected, again + rejected)
    return _count(start_N, own, second, second) + np.where(rejected > 0, alone, 0)


def _count(start: np.ndarray, own: np.ndarray, second: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Tiles of `[prompt | chosen | rejected]`, which begin at `start`, `own` and `second`."""
    first, last = ceil_div(start, TILE), (end - 1) // TILE
    prompt_last, chosen_last = (own - 1) // TILE, (second - 1) // TILE
    # A block sees all blocks of its pair up to itself; after the chosen completion without those
    # that hold nothing but chosen tokens.
    before = 1 - start // TILE
    unseen = np.maximum(second // TILE - prompt_last - 1, 0)
    return _sum(first, chosen_last, before) + _sum(
        np.maximum(first, chosen_last + 1), last, before - unseen
    )


def _sum(first: np.ndarray, last: np.ndarray, each: np.ndarray) -> np.ndarray:
    """Returns Σ (block + each) over the blocks `first` to `last`, of which there may be none."""
    return np.maximum(last - first + 1, 0) * (first + last + 2 * each) // 2

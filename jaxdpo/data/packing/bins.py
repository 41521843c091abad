"""Best-fit decreasing: items into bins, of one step or of many thousands at once."""

import bisect
from collections.abc import Sequence

import numpy as np


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into bins: largest first, each into the fullest bin that still holds it.

    >>> best_fit_decreasing([3, 5, 2, 4], capacity=7)
    [[1, 2], [3, 0]]
    """
    # Larger items first, because a small one still fits where a large one no longer does. Packing
    # as tightly as can be is NP-hard. This needs at most 11/9 of the best number of bins where they
    # are many (Johnson, 1973), and leaves a few percent of padding on lengths of real pairs.
    bins: list[list[int]] = []
    count = len(sizes)
    # The free space of every bin, sorted, so that bisection finds the fullest bin that still holds
    # an item in O(log bins). Space and bin are one number, space * count + bin: there are at most
    # `count` bins, so it sorts by space and then by bin, and both are got back by division.
    room: list[int] = []
    # `sorted` is stable: items of one size keep their order, and the plan is the same everywhere.
    for item in sorted(range(count), key=sizes.__getitem__, reverse=True):
        taken = sizes[item] * count
        # The first number that is at least size * count + 0 has room for the item.
        place = bisect.bisect_left(room, taken)
        if place < len(room):
            best = room.pop(place)
            bins[best % count].append(item)
        else:
            best = capacity * count + len(bins)
            bins.append([item])
        # Taking size * count leaves the bin's own number in the remainder.
        bisect.insort(room, best - taken)
    return bins


def pack_steps(sizes_SN: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs the items of many steps, each step as `best_fit_decreasing` does it.

    The plan of millions of pairs takes seconds by this, and minutes step by step.

    >>> items, bins = pack_steps(np.array([[3, 5, 2, 4]]), capacity=7)
    >>> items.tolist(), bins.tolist()
    ([[1, 2, 3, 0]], [[0, 0, 1, 1]])

    Args:
      sizes_SN: Sizes of the N items of each of S steps, `[S, N]`; an item of size 0 opens no bin.
      capacity: Size of a bin, of no less than any item.

    Returns:
      For each step the indices of its items, bin after bin and in the order in which they were put
      in, `[S, N]`; and the bin of each of these, `[S, N]`.
    """
    steps, count = sizes_SN.shape
    largest_first = np.argsort(-sizes_SN, axis=1, kind="stable")
    sorted_SN = np.take_along_axis(sizes_SN, largest_first, 1).astype(np.int32)
    # Every bin that there could be, the ones not yet opened being empty. An empty bin has the most
    # room of all, so it is chosen only where nothing else will do, and then the first of them.
    room_SB = np.full((steps, count), capacity, np.int32)
    bins_SN = np.empty((steps, count), np.int32)
    step = np.arange(steps)
    opened = 0
    for item in range(count):
        size_S1 = sorted_SN[:, item : item + 1]
        # What would be left in each bin. A bin that is too full has a negative number left, which
        # is a huge one once it is read as unsigned, so the smallest is the best fit.
        left_SB = (room_SB[:, : opened + 1] - size_S1).view(np.uint32)
        best_S = left_SB.argmin(1)
        room_SB[step, best_S] -= size_S1[:, 0]
        bins_SN[:, item] = best_S
        opened = min(max(opened, int(best_S.max()) + 1), count - 1)
    by_bin = np.argsort(bins_SN, axis=1, kind="stable")
    return (
        np.take_along_axis(largest_first, by_bin, 1),
        np.take_along_axis(bins_SN, by_bin, 1),
    )

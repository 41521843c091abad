"""Beginnings that two texts, or two sequences of ids, have in common."""

import itertools

import numpy as np


def shared_start(a: str, b: str) -> str:
    """Returns the text that both texts begin with."""
    same = itertools.takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False))
    return a[: sum(1 for _ in same)]


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many ids both sequences begin with."""
    length = min(len(a), len(b))
    (different,) = (a[:length] != b[:length]).nonzero()
    return int(different[0]) if len(different) else length


def last_place(part: np.ndarray, whole: np.ndarray) -> int:
    """Returns where the last occurrence of some ids ends in others; -1 if there is none."""
    size = len(part)
    # The last one: text that looks like the part may come before, but nothing follows the answer.
    ends = range(len(whole), size - 1, -1) if size else ()
    return next((end for end in ends if np.array_equal(whole[end - size : end], part)), -1)

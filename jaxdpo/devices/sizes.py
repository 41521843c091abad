"""Whole blocks: the two roundings by which lengths become sizes of arrays."""

from typing import Protocol, Self, TypeVar


class _Number(Protocol):
    """Numbers with integer division: int, numpy's arrays and jax's, without importing either."""

    def __neg__(self) -> Self: ...
    def __floordiv__(self, other: int, /) -> Self: ...
    def __mul__(self, other: int, /) -> Self: ...


Count = TypeVar("Count", bound=_Number)


def ceil_div(count: Count, size: int) -> Count:
    """Returns how many blocks of `size` hold `count` things, the last of them perhaps not full.

    >>> ceil_div(65, 64)
    2
    """
    # Floor division of the negative rounds away from zero, in integers: a float would lose counts
    # above 2**53, and a jax array on a device its dtype.
    return -(-count // size)


def round_up(count: Count, size: int) -> Count:
    """Returns the smallest multiple of `size` that is at least `count`.

    >>> round_up(65, 64)
    128
    """
    return ceil_div(count, size) * size

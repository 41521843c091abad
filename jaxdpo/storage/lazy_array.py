"""Arrays that lie in files and are read by parts, so that none need be in memory whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# A part of an array: a slice of step 1 along each of its axes.
Spans = tuple[slice, ...]


@dataclass(frozen=True)
class Stored:
    """An array in a file; a leaf of a tree, where a `jax.Array` would be.

    Attributes:
      shape: Of the array.
      dtype: Of the parts, as numpy has it.
      read: Gives a part.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[Spans], np.ndarray]

    def at(self, indices: Sequence[int]) -> np.ndarray:
        """Reads the part at one index of each of the first axes, without those axes."""
        inner = self.shape[len(indices) :]
        spans = (
            *(slice(index, index + 1) for index in indices),
            *(slice(0, size) for size in inner),
        )
        return self.read(spans).reshape(inner)

    def cast(self, dtype: Any) -> "Stored":
        """Returns the same array in another dtype."""
        if dtype == self.dtype:
            return self
        return replace(self, dtype=dtype, read=lambda spans: self.read(spans).astype(dtype))

    def watched(self, seen: Callable[[int], None]) -> "Stored":
        """Returns the same array; `seen` is called with the bytes of each part that is read."""

        def read(spans: Spans) -> np.ndarray:
            part = self.read(spans)
            seen(part.nbytes)
            return part

        return replace(self, read=read)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def matrices(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the leading axes of an array that stack matrices, as layers and experts do.

    >>> matrices((12, 64, 256)), matrices((50257, 64)), matrices((12, 64))
    ((12,), (), ())
    """
    return tuple(shape[:-2])

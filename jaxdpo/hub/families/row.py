"""A row of a family's table: a parameter of ours and the tensor it is stored in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Row:
    """One row of a family's table.

    Attributes:
      ours: Path of the parameter, such as "layers/mlp/up/kernel".
      theirs: Name of the tensor, with {i} for the layer where ours is stacked by layer, and {e} for
        the expert where it is stacked by expert too.
      transposed: Whether theirs is `[out, in]` where ours is `[in, out]`.
      span: (start, stop, size) where theirs holds several of ours side by side along the last axis
        of ours, `size` channels in all.
      above: The same along the axis before the last. What no row of theirs covers is zero.
    """

    ours: str
    theirs: str
    transposed: bool = False
    span: tuple[int, int, int] | None = None
    above: tuple[int, int, int] | None = None

    @property
    def leading(self) -> int:
        """Leading axes of ours that theirs has a tensor of its own for each index of."""
        return self.theirs.count("{")

    @property
    def whole(self) -> bool:
        """Whether theirs holds nothing but ours."""
        return self.span is None and self.above is None

    @property
    def order(self) -> int:
        """Step through the axes of ours that gives theirs: -1 where transposed."""
        return -1 if self.transposed else 1

    def name(self, *indices: int) -> str:
        """Name of the tensor of one layer, and one expert."""
        return self.theirs.format(**dict(zip("ie", indices, strict=False)))

    def indices(self, shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The indices along the leading axes of ours."""
        return product(*(range(size) for size in shape[: self.leading]))

    def their_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a tensor of theirs, given that of all of ours."""
        inner = list(shape[self.leading :])
        for axis, span in self._spans():
            inner[axis] = span[2]
        return tuple(inner[:: self.order])

    def their_index(self, inner: Sequence[slice]) -> tuple[slice, ...]:
        """Where a block of one tensor of ours stands in theirs."""
        moved = list(inner)
        for axis, (start, _, _) in self._spans():
            moved[axis] = slice(moved[axis].start + start, moved[axis].stop + start)
        return tuple(moved[:: self.order])

    def _spans(self) -> list[tuple[int, tuple[int, int, int]]]:
        return [(axis, span) for axis, span in ((-1, self.span), (-2, self.above)) if span]

    def turned(self, array: np.ndarray) -> np.ndarray:
        """One tensor of theirs as ours, or of ours as theirs."""
        return array.T if self.transposed else array


def linear(ours: str, theirs: str) -> tuple[Row, Row]:
    """Kernel and bias of a linear map of a layer, stored as torch stores them."""
    return (
        Row(f"layers/{ours}/kernel", f"{theirs}.weight", transposed=True),
        Row(f"layers/{ours}/bias", f"{theirs}.bias"),
    )


def fused(
    part: str, sizes: dict[str, int], theirs: str, transposed: bool = True
) -> tuple[Row, ...]:
    """Kernels and biases of several linear maps of a layer that one tensor holds side by side.

    Args:
      part: "attention" or "mlp".
      sizes: Name of each map ↦ its outputs, in order.
      theirs: Name of the tensor, without ".weight".
      transposed: Whether theirs is `[out, in]`.
    """
    rows, start, total = [], 0, sum(sizes.values())
    for name, size in sizes.items():
        span = (start, start + size, total)
        kernel = f"layers/{part}/{name}/kernel"
        rows.append(Row(kernel, f"{theirs}.weight", transposed, span))
        rows.append(Row(f"layers/{part}/{name}/bias", f"{theirs}.bias", span=span))
        start += size
    return tuple(rows)

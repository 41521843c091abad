"""A row of a family's table: one of our parameters and the tensor of the file that stores it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """The part of a tensor's axis that one parameter takes up, where several share the tensor.

    Attributes:
      offset: Index of the part's first channel.
      size: Channels of the part.
      total: Channels of the whole axis.
    """

    offset: int
    size: int
    total: int


@dataclass(frozen=True)
class Row:
    """One row of a family's table.

    For example, Phi-3 stores q, k and v in one tensor `[q + k + v, hidden]`; the row of k is

        Row("layers/attention/k/kernel", "model.layers.{i}.self_attn.qkv_proj.weight",
            transposed=True, columns=Span(offset=q, size=k, total=q + k + v))

    Attributes:
      path: Path of the parameter, such as "layers/mlp/up/kernel".
      hf_name: Name of the tensor, with {i} for the layer where the parameter is stacked by layer,
        and {e} for the expert where it is stacked by expert too.
      transposed: Whether the tensor is `[out, in]` where the parameter is `[in, out]`.
      columns: The part of the tensor that the parameter takes up along its last axis; None for all.
      rows: The same along the axis before the last. What no row of the table covers is zero.
      layers: Numbers of the layers that the parameter is stacked over; None for all.
    """

    path: str
    hf_name: str
    transposed: bool = False
    columns: Span | None = None
    rows: Span | None = None
    layers: tuple[int, ...] | None = None

    @property
    def leading(self) -> int:
        """Number of leading axes of the parameter that are spread over tensors of their own."""
        return self.hf_name.count("{")

    @property
    def whole(self) -> bool:
        """True if the tensor holds this parameter and nothing else."""
        return self.columns is None and self.rows is None

    def layer(self, place: int) -> int:
        """Returns the number of the layer at a place of the parameter's first axis."""
        return place if self.layers is None else self.layers[place]

    def name(self, *indices: int) -> str:
        """Returns the name of the tensor at a place of the first axis, and of one expert."""
        if indices:
            indices = (self.layer(indices[0]), *indices[1:])
        return self.hf_name.format(**dict(zip("ie", indices, strict=False)))

    def indices(self, shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yields the indices along the leading axes of a parameter of this shape."""
        return product(*(range(size) for size in shape[: self.leading]))

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of one tensor, given that of the stacked parameter."""
        inner = list(shape[self.leading :])
        for axis, span in self._spans():
            inner[axis] = span.total
        return tuple(reversed(inner)) if self.transposed else tuple(inner)

    def hf_index(self, inner: Sequence[slice]) -> tuple[slice, ...]:
        """Returns the place in the tensor of a block of one layer's parameter."""
        moved = list(inner)
        for axis, span in self._spans():
            moved[axis] = slice(moved[axis].start + span.offset, moved[axis].stop + span.offset)
        # Slices are given along the parameter's axes, and a transposed tensor has them reversed.
        return tuple(reversed(moved)) if self.transposed else tuple(moved)

    def transpose(self, array: np.ndarray) -> np.ndarray:
        """Turns a block of the tensor into one of the parameter, or the other way round."""
        return array.T if self.transposed else array

    def _spans(self) -> list[tuple[int, Span]]:
        return [(axis, span) for axis, span in ((-1, self.columns), (-2, self.rows)) if span]


def linear(path: str, hf_name: str, layers: tuple[int, ...] | None = None) -> tuple[Row, Row]:
    """Returns the rows of kernel and bias of a layer's linear map, stored as torch stores them.

    Args:
      path: Path of the map within a layer, such as "mlp/up".
      hf_name: Name of its tensors, without ".weight".
      layers: Numbers of the layers that have it; None for all.
    """
    return (
        Row(f"layers/{path}/kernel", f"{hf_name}.weight", transposed=True, layers=layers),
        Row(f"layers/{path}/bias", f"{hf_name}.bias", layers=layers),
    )


def fused(
    part: str, sizes: dict[str, int], hf_name: str, transposed: bool = True
) -> tuple[Row, ...]:
    """Returns the rows of several linear maps of a layer that share one tensor, side by side.

    Args:
      part: "attention" or "mlp".
      sizes: Number of outputs of each map, in the tensor's order.
      hf_name: Name of the tensor, without ".weight".
      transposed: Whether the tensor is `[out, in]`.
    """
    rows, offset, total = [], 0, sum(sizes.values())
    for name, size in sizes.items():
        span = Span(offset, size, total)
        kernel = f"layers/{part}/{name}/kernel"
        rows.append(Row(kernel, f"{hf_name}.weight", transposed, span))
        rows.append(Row(f"layers/{part}/{name}/bias", f"{hf_name}.bias", columns=span))
        offset += size
    return tuple(rows)

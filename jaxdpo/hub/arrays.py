"""Tensors of model files that are read by slices, and sums of them that are formed when read."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from safetensors import safe_open


class Readable(Protocol):
    """An array of known shape, whose parts are read when they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        ...

    @property
    def dtype(self) -> str:
        """The safetensors format's word for the type, such as "BF16"."""
        ...

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part."""
        ...


@dataclass(frozen=True)
class Tensor:
    """A tensor of a safetensors file.

    The file is opened anew for each reading. An open one is mapped into memory, where all that has
    been read of it would stay.

    Attributes:
      path: The file.
      name: Name of the tensor in the file.
      shape: Shape of the tensor.
      dtype: The file's own word for it, such as "BF16".
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the tensor."""
        with safe_open(self.path, framework="np") as file:
            return file.get_slice(self.name)[index]


def whole(tensor: Readable) -> np.ndarray:
    """Reads all of a tensor, in fp32."""
    return tensor.read(tuple(slice(0, size) for size in tensor.shape)).astype(np.float32)


@dataclass(frozen=True)
class Transposed:
    """A matrix read with its axes exchanged."""

    tensor: Readable

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the transposed matrix."""
        return self.tensor.shape[::-1]

    @property
    def dtype(self) -> str:
        """Type of the matrix."""
        return self.tensor.dtype

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the transposed matrix."""
        return self.tensor.read(index[::-1]).T


@dataclass(frozen=True)
class LowRankSum:
    """`base + scale · left @ right`, fp32, formed for the parts that are read.

    Attributes:
      base: Matrix `[rows, columns]`.
      left: `[rows, rank]`.
      right: `[rank, columns]`.
      scale: Factor on the product.
    """

    base: Readable
    left: Readable
    right: Readable
    scale: float
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the sum."""
        return self.base.shape

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the sum."""
        # A tied head is compared with the embedding by rows, without the second slice.
        rows, columns = (*index, slice(0, self.shape[1]))[:2]
        ranks = slice(0, self.left.shape[1])
        left = self.left.read((rows, ranks)).astype(np.float32)
        right = self.right.read((ranks, columns)).astype(np.float32)
        return self.base.read((rows, columns)).astype(np.float32) + self.scale * left @ right


@dataclass(frozen=True)
class StartTerm:
    """One factor of the term that PiSSA or OLoRA takes out of a base matrix before training.

    Both start `a` and `b` from a decomposition of the weight W `[out, in]` and train on
    W − scale · B₀ A₀. Which A₀ and B₀ these were follows from W:

        PiSSA (https://arxiv.org/abs/2404.02948): the r largest singular triplets of W,
            A₀ = √(S/scale) Vᵀ and B₀ = U √(S/scale);
        OLoRA (https://arxiv.org/abs/2406.01775): W = QR, A₀ = the first r rows of R and
            B₀ = the first r columns of Q.

    Attributes:
      weight: W.
      kind: Which of the two.
      factor: "A" `[r, in]` or "B" `[out, r]`.
      rank: r.
      scale: The adapter's scale.
    """

    weight: Readable
    kind: Literal["pissa", "olora"]
    factor: Literal["A", "B"]
    rank: int
    scale: float
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the factor."""
        out, inputs = self.weight.shape
        return (self.rank, inputs) if self.factor == "A" else (out, self.rank)

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the factor; the weight is decomposed once for both factors."""
        a, b = _start(self.weight, self.kind, self.rank, self.scale)
        return (a if self.factor == "A" else b)[index]


@lru_cache(maxsize=2)
def _start(
    weight: Readable, kind: Literal["pissa", "olora"], rank: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    matrix = whole(weight)
    if kind == "olora":
        q, r = np.linalg.qr(matrix)
        return r[:rank], q[:, :rank]
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(s[:rank] / scale)
    return root[:, None] * vt[:rank], u[:, :rank] * root

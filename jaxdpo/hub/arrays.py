"""Tensors of model files that are read by slices, and sums of them that are formed when read."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np
from safetensors import safe_open

# Floats of eight bits, which the safetensors library hands out to torch but not to NumPy.
FLOATS8: dict[str, Any] = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


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
        if self.dtype in FLOATS8:
            return self._bytes().view(FLOATS8[self.dtype]).reshape(self.shape)[index]
        with safe_open(self.path, framework="np") as file:
            return file.get_slice(self.name)[index]

    def _bytes(self) -> np.ndarray:
        """Maps the tensor's bytes, which the file's header places."""
        with open(self.path, "rb") as file:
            # The format: 8 bytes of header length, the header in JSON, and the tensors, whose
            # offsets are counted from the header's end.
            length = int.from_bytes(file.read(8), "little")
            start, end = json.loads(file.read(length))[self.name]["data_offsets"]
        return np.memmap(self.path, np.uint8, "r", offset=8 + length + start, shape=(end - start,))


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
class RowsReplaced:
    """A matrix with some of its rows in place of the base's.

    Attributes:
      base: Matrix `[rows, columns]`.
      rows: The rows that replace others, `[n, columns]`.
      places: Which row of the base each of them replaces.
    """

    base: Readable
    rows: Readable
    places: tuple[int, ...]
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.base.shape

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the matrix."""
        rows, columns = (*index, slice(0, self.shape[1]))[:2]
        out = self.base.read((rows, columns)).astype(np.float32)
        for number, place in enumerate(self.places):
            if rows.start <= place < rows.stop:
                out[place - rows.start] = self.rows.read((slice(number, number + 1), columns))[0]
        return out


class Start:
    """The term that PiSSA or OLoRA takes out of a base matrix before training.

    Both start `a` and `b` from a decomposition of the weight W `[out, in]` and train on
    W − scale · B₀ A₀. Which A₀ and B₀ these were follows from W:

        PiSSA (https://arxiv.org/abs/2404.02948): the r largest singular triplets of W,
            A₀ = √(S/scale) Vᵀ and B₀ = U √(S/scale);
        OLoRA (https://arxiv.org/abs/2406.01775): W = QR, A₀ = the first r rows of R and
            B₀ = the first r columns of Q.

    Args:
      weight: W.
      kind: Which of the two.
      rank: r.
      scale: The adapter's scale.
    """

    def __init__(
        self, weight: Readable, kind: Literal["pissa", "olora"], rank: int, scale: float
    ) -> None:
        self.weight, self.kind, self.rank, self.scale = weight, kind, rank, scale

    @cached_property
    def factors(self) -> dict[str, np.ndarray]:
        """A₀ `[r, in]` and B₀ `[out, r]`, fp32.

        Kept by the adapter and not in a cache by the file's name: what lies under the name may be
        another model a minute later. Together they are as large as the adapter itself.
        """
        matrix, rank = whole(self.weight), self.rank
        if self.kind == "olora":
            q, r = np.linalg.qr(matrix)
            return {"A": r[:rank], "B": q[:, :rank]}
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        # The singular values are shared out evenly between both factors.
        root = np.sqrt(s[:rank] / self.scale)
        return {"A": root[:, None] * vt[:rank], "B": u[:, :rank] * root}


@dataclass(frozen=True)
class StartFactor:
    """One factor of the term that PiSSA or OLoRA takes out of a base matrix.

    Attributes:
      start: The term; both of its factors come from one decomposition.
      factor: "A" `[r, in]` or "B" `[out, r]`.
    """

    start: Start
    factor: Literal["A", "B"]
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the factor."""
        out, inputs = self.start.weight.shape
        return (self.start.rank, inputs) if self.factor == "A" else (out, self.start.rank)

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the factor."""
        return self.start.factors[self.factor][index]

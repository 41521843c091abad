"""Opens GGUF files: metadata as Python values, tensors that are dequantized when they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdpo.errors import UserError

_MAGIC = b"GGUF"


def gguf_package() -> Any:
    """Returns the module `gguf`, which reads and writes the format.

    Raises:
      UserError: If it is not installed.
    """
    # Here and not at the top: it is an extra, and everything else works without it.
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            'GGUF files need the package `gguf`; install it with pip install "jaxdpo[gguf]"'
        ) from error
    return gguf


def is_gguf(path: Path) -> bool:
    """Tells whether a path is a file that is, or is named as, a GGUF file."""
    if not path.is_file():
        return False
    # A damaged file of the name is one too: its error says what is wrong with it.
    if path.suffix == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, read as fp32 whatever numbers the file holds.

    Attributes:
      shape: Shape as torch has it, `[out, in]` for a matrix; the file lists it in reverse.
      stored: The file's numbers, mapped into memory: `[out, bytes of a row]` where quantized.
      kind: The file's type, such as "Q4_1".
    """

    shape: tuple[int, ...]
    stored: np.ndarray
    kind: Any

    @property
    def dtype(self) -> str:
        """Type of what `read` returns, as safetensors names it."""
        return "F32"

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the tensor."""
        # Blocks of quantized numbers lie along the last axis, so whole rows are dequantized, and
        # only those that are asked for.
        first, *rest = index
        rows = gguf_package().quants.dequantize(self.stored[first], self.kind)
        return rows[(slice(None), *rest)]


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file.

    Attributes:
      path: The file, for messages.
      metadata: Key ↦ value.
      tensors: Name ↦ tensor.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def value(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Returns the value of a key that the file must have.

        Args:
          key: The key, such as "llama.block_count".
          kind: Type of the value.

        Raises:
          UserError: If it is missing or of another type.
        """
        found = self.metadata.get(key)
        # bool is a kind of int in Python, and no size is one.
        if not isinstance(found, kind) or isinstance(found, bool):
            says = "lacks it" if found is None else f"has {found!r:.60}"
            raise UserError(f"{self.path}: a GGUF file of a model says {key}; this one {says}")
        return found


def open_file(path: Path) -> GgufFile:
    """Opens a GGUF file, and checks that it is whole and that its numbers can be read.

    Raises:
      UserError: If the package `gguf` is missing, or the file is damaged or holds numbers of a type
        that the package does not dequantize.
    """
    gguf = gguf_package()
    try:
        reader = _reader(gguf, path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    # What the package raises for a damaged file depends on the byte that is wrong: an unknown
    # enumerator is a ValueError, a string beyond the end an IndexError, a key twice a KeyError.
    except (ValueError, LookupError, ArithmeticError, OSError, MemoryError) as error:
        raise UserError(
            f"{path}: no GGUF file, or a damaged or incomplete one ({error}); copy it again"
        ) from error
    # The reader maps the file into memory, so nothing is read yet but the header.
    tensors = {}
    for found in reader.tensors:
        shape = tuple(int(size) for size in reversed(found.shape))
        tensors[found.name] = GgufTensor(shape, found.data, found.tensor_type)
    # One tensor stands for all of its type: asked before an hour of converting the others.
    for kind in {tensor.kind for tensor in tensors.values()}:
        if not _can_dequantize(gguf, kind):
            name = next(name for name, tensor in tensors.items() if tensor.kind == kind)
            raise UserError(
                f"{path}: {name} is {kind.name}, which the package gguf does not dequantize; use a "
                "file in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K-quant"
            )
    return GgufFile(path, metadata, tensors)


def _reader(gguf: Any, path: Path) -> Any:
    """Returns a `GGUFReader` that refuses to read beyond the end of the file.

    The package's own returns fewer numbers there, and for an array whose length was damaged goes on
    for as many elements as that says.
    """

    class Reader(gguf.GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, **order: Any) -> np.ndarray:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data)}, before {end}")
            return super()._get(offset, dtype, count, **order)

    return Reader(path)


def _can_dequantize(gguf: Any, kind: Any) -> bool:
    """Tells whether the package dequantizes a type, by trying it on a block of zeros."""
    _, size = gguf.constants.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True

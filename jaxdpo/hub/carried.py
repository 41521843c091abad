"""Parts of a model of text and images beside its text model, which an export carries along."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdpo.hub.arrays import Tensor
from jaxdpo.hub.export import DTYPES, TensorSpec


class Carried(NamedTuple):
    """The parts of a model folder that training leaves alone.

    Attributes:
      tensors: Name ↦ tensor of what belongs to images.
      names: Name of a text model's tensor ↦ the name that the folder has for it.
      files: Files of the processor.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    files: tuple[Path, ...]

    def specs(self) -> dict[str, TensorSpec]:
        """Describes the tensors that are carried."""
        return {
            name: TensorSpec(tensor.shape, DTYPES[tensor.dtype])
            for name, tensor in self.tensors.items()
        }

    def arrays(self) -> Iterator[np.ndarray]:
        """Yields their values, one at a time, in the order of `specs`."""
        for tensor in self.tensors.values():
            yield tensor.read(tuple(slice(0, size) for size in tensor.shape))

"""What a model of text and images has beside its text model: carried through an export as it is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.arrays import Tensor
from jaxdpo.hub.export import DTYPES, TensorSpec
from jaxdpo.hub.families import wrapper_of
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import member
from jaxdpo.hub.read import OF_IMAGES, WEIGHTS, head_is_tied, open_tensors, plain_name

# How a processor cuts and scales images, and the template that it has beside the tokenizer's.
_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


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


def open_carried(source: str, revision: str | None, hf_config: Mapping[str, Any]) -> Carried | None:
    """Opens what an export carries from the folder that a model came from; None of a text model.

    Args:
      source: The folder, or `org/name`.
      revision: Branch, tag or commit on the Hub; None for the newest.
      hf_config: config.json of the model.

    Raises:
      UserError: If the folder is gone, or holds a tensor that can't be written again.
    """
    if wrapper_of(hf_config) is None:
        return None
    try:
        folder = find_folder(source, revision=revision)
        tensors = open_tensors(folder, WEIGHTS, head_is_tied(hf_config))
    except UserError as error:
        raise UserError(
            f"{source}: the tensors of this model's images are there alone, and an export carries "
            f"them along: {error}"
        ) from error
    carried = {name: tensor for name, tensor in tensors.items() if OF_IMAGES.match(name)}
    for name, tensor in carried.items():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{folder}: {name} is {tensor.dtype}, which can't be carried through an export; "
                f"there are {', '.join(DTYPES)}"
            )
    names = {plain_name(name): name for name in tensors if name not in carried}
    files = tuple(member(folder, name) for name in _FILES if member(folder, name).exists())
    return Carried(carried, names, files)

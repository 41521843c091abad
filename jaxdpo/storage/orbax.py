"""Trees of arrays on disk as Orbax has them, of which single matrices can be read and written.

Orbax keeps each array as zarr3 in one OCDBT database, both of TensorStore's
(https://google.github.io/tensorstore), and writes an array whole. It is told here to cut a stack of
matrices [L, in, out] into chunks of one, which TensorStore then finds by itself.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxdpo.devices.sharding import path_name
from jaxdpo.errors import UserError
from jaxdpo.storage.lazy_array import Spans, Stored, matrices

# Where Orbax puts the arrays of a tree that it saves.
_STATE = "state"
# Written and not yet on disk at one time, in bytes: enough for several matrices in one file.
_UNDER_WAY = 2**27


def _is_news(record: logging.LogRecord) -> bool:
    # Each of Orbax's threads logs the error that it ends with, a traceback of forty lines, although
    # it hands the error on to whoever waits for the save.
    return "_SignalingThread.run() raised" not in record.getMessage()


logging.getLogger("absl").addFilter(_is_news)


def saved_by_matrix() -> ocp.Context:
    """Returns the context to save in, so that `stored_arrays` reads single matrices."""
    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = _by_matrix
    return context


def _by_matrix(key: Any, value: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions:
    del key
    axes = tuple(range(len(matrices(np.shape(value)))))
    return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=axes)


def stored_arrays(folder: Path, expected: Any, *within: str, rounded: bool = False) -> Any:
    """Opens a tree of arrays that was saved, left on disk.

    Args:
      folder: As it was given to Orbax.
      expected: The tree, with the shape and dtype of each array.
      within: Keys of the saved tree under which it lies.
      rounded: Whether fp32 arrays may be read in the narrower dtype that is expected.

    Returns:
      The tree, each array a `Stored`.

    Raises:
      UserError: If the arrays are others.
    """
    found: Any = ocp.metadata(str(folder.absolute())).metadata
    for key in within:
        found = found[key]
    shapes = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(found)}
    names = {path_name(path) for path, _ in jax.tree.leaves_with_path(expected)}
    if shapes.keys() != names:
        different = sorted(shapes.keys() ^ names)
        raise UserError(f"{folder}: its arrays are not the model's; {different[0]} differs")

    def stored(path: Any, leaf: jax.ShapeDtypeStruct) -> Stored:
        name = path_name(path)
        is_shape, is_dtype = shapes[name].shape, np.dtype(shapes[name].dtype)
        fits = is_dtype == leaf.dtype or (rounded and is_dtype == np.float32)
        if tuple(is_shape) != leaf.shape or not fits:
            raise UserError(
                f"{folder}: {name} is {is_dtype.name}{list(is_shape)}, but the model's is "
                f"{leaf.dtype.name}{list(leaf.shape)}"
            )
        array = _open(folder, ".".join((*within, *name.split("/"))))

        def read(spans: Spans) -> np.ndarray:
            return np.asarray(array[spans].read().result())

        return Stored(leaf.shape, is_dtype, read).cast(leaf.dtype)

    return jax.tree.map_with_path(stored, expected)


def write_arrays(folder: Path, arrays: Any) -> None:
    """Saves a tree of `Stored` as Orbax saves a tree of arrays, a matrix at a time in memory.

    Orbax first saves zeros in their places, which take up no memory, and nearly none on disk.
    """
    context = saved_by_matrix()
    # The zeros are one number, broadcast: a copy would take up what they only stand for.
    context.memory.deepcopy_host_arrays = False
    zeros = jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), arrays)
    with context:
        ocp.save(str(folder.absolute()), zeros)
    under_way, size = [], 0
    for path, stored in jax.tree.leaves_with_path(arrays):
        array = _open(folder, path_name(path).replace("/", "."))
        for indices in np.ndindex(matrices(stored.shape)):
            part = stored.at(indices)
            under_way.append(array[indices].write(part))
            size += part.nbytes
            # Writes run ahead of the disk, but not by a model's size.
            if size >= _UNDER_WAY:
                _finish(under_way)
                size = 0
    _finish(under_way)


def _finish(under_way: list[Any]) -> None:
    for write in under_way:
        write.result()
    under_way.clear()


def _open(folder: Path, name: str) -> Any:
    base = f"file://{folder.absolute() / _STATE}/"
    store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result()

"""Hugging Face weights → parameters: strict, and each device reads its own slice.

Only safetensors are read, without torch: nothing in a model folder is ever executed or unpickled.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxdpo.errors import UserError
from jaxdpo.hub.families import Row, family_of
from jaxdpo.hub.folder import member, read_config, read_json
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, abstract_params
from jaxdpo.sharding import path_name

WEIGHTS = "model.safetensors"

# Tensors that old checkpoints store although they follow from the config.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$|(^|\.)h\.\d+\.attn\.(masked_)?bias$")
_HEAD = "lm_head.weight"
_FLOATS = ("F32", "F16", "BF16", "F64")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
# Names shown of a long list.
_SHOWN = 8

# A lazily read tensor of an open safetensors file: get_shape(), get_dtype(), [slices].
Lazy = Any
# (start, stop, step) along each axis.
Spans = tuple[tuple[int, int, int], ...]


def load_params(
    folder: Path, config: ModelConfig, dtype: Any, shardings: Params | None = None
) -> Params:
    """Loads a model folder's weights as the parameters of `config`.

    Every tensor of the files is used exactly once and every parameter is filled. A sharded
    parameter is never whole on the host: each device's slice is read from the file by itself.

    Args:
      folder: Model folder with config.json and safetensors.
      config: Architecture, as `config_from_hf` gives it for that folder.
      dtype: Of the parameters.
      shardings: Where each parameter lives, a tree of NamedSharding; None for the first device.

    Raises:
      UserError: For missing, damaged, left-over or misshapen weights.
    """
    family = family_of(read_config(folder))
    with open_tensors(folder, WEIGHTS) as stored:
        tensors = {name: lazy for name, lazy in stored.items() if not _DERIVED.search(name)}
        if not any(name.startswith(family.prefix) for name in tensors):
            tensors = {
                name if name == _HEAD else family.prefix + name: lazy
                for name, lazy in tensors.items()
            }
        embedding = next(row.theirs for row in family.rows(config) if row.ours == "embed/weight")
        if config.tied_head and _HEAD in tensors and embedding in tensors:
            _check_tied(folder, tensors.pop(_HEAD), tensors[embedding])
        rows = family.rows(config)
        return read_tree(folder, tensors, rows, abstract_params(config, dtype), shardings)


@contextlib.contextmanager
def open_tensors(folder: Path, weights: str) -> Iterator[dict[str, Lazy]]:
    """Opens the safetensors of a folder, one file or several with an index: name → lazy tensor.

    Raises:
      UserError: For missing or damaged files, or files that disagree with the index.
    """
    tensors: dict[str, Lazy] = {}
    with contextlib.ExitStack() as stack:
        for shard, listed in _shards(folder, weights).items():
            path = member(folder, shard)
            if not path.is_file():
                raise UserError(f"{path}: missing, though the index names it")
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged or cut off ({error}); copy it again") from error
            names = set(file.keys())
            if listed is not None and names != listed:
                raise UserError(f"{path}: the index lists others: {_some(sorted(names ^ listed))}")
            tensors.update({name: file.get_slice(name) for name in names})
        yield tensors


def _shards(folder: Path, weights: str) -> dict[str, set[str] | None]:
    """Each file of weights, with the tensors that the index lists for it (None: no index)."""
    index = folder / f"{weights}.index.json"
    if index.exists():
        weight_map = read_json(folder, index.name).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: weight_map must map tensor names to file names")
        shards: dict[str, Any] = {}
        for name, shard in weight_map.items():
            shards.setdefault(str(shard), set()).add(name)
        return shards
    if (folder / weights).exists():
        return {weights: None}
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder}: its weights are in {_some(pickled)}, which are not read because loading "
            "them can run code; save the model again as safetensors"
        )
    raise UserError(f"{folder}: holds no weights ({weights}, or {index.name} and its files)")


def _check_tied(folder: Path, head: Lazy, embedding: Lazy) -> None:
    """Raises unless a stored head repeats the embedding that it is tied to."""
    rows = head.get_shape()[0]
    blocks = (slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096))
    same = head.get_shape() == embedding.get_shape() and all(
        np.array_equal(head[block], embedding[block]) for block in blocks
    )
    if not same:
        raise UserError(
            f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), but "
            "lm_head.weight differs from it; set tie_word_embeddings to false"
        )


def read_tree(
    folder: Path,
    tensors: Mapping[str, Lazy],
    rows: Sequence[Row],
    expected: Params,
    shardings: Params | None,
) -> Params:
    """Reads a nested dict of arrays from the tensors that a table says they are stored in.

    Args:
      folder: Where the tensors are from, for messages.
      tensors: All that must be used.
      rows: The table; rows of arrays that are not expected are passed over.
      expected: Shape and dtype of each array.
      shardings: Where each array lives; None for the first device.

    Raises:
      UserError: If tensors are missing, left over, or of another shape.
    """
    table = {row.ours: row for row in rows}
    arrays = [(table[path_name(path)], leaf) for path, leaf in jax.tree.leaves_with_path(expected)]
    _check(folder, tensors, arrays)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = shardings or jax.tree.map(lambda _: device, expected)
    return jax.tree.map_with_path(
        lambda path, leaf, sharding: _read_array(table[path_name(path)], tensors, leaf, sharding),
        expected,
        where,
    )


def _check(
    folder: Path,
    tensors: Mapping[str, Lazy],
    arrays: Sequence[tuple[Row, jax.ShapeDtypeStruct]],
) -> None:
    """Raises unless the tensors are exactly those that the arrays are stored in."""
    shapes: dict[str, list[int]] = {}
    for row, leaf in arrays:
        shape = list(row.their_shape(leaf.shape))
        shapes.update({row.name(*indices): shape for indices in row.indices(leaf.shape)})
    missing, unused = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    if missing or unused:
        problems = [
            f"{len(names)} {what}: {_some(sorted(names))}"
            for names, what in ((missing, "missing"), (unused, "that have no use here"))
            if names
        ]
        raise UserError(f"{folder}: the tensors do not fit the config; {'; '.join(problems)}")
    for name, shape in shapes.items():
        found, dtype = list(tensors[name].get_shape()), tensors[name].get_dtype()
        if found != shape:
            raise UserError(f"{folder}: {name} has shape {found}, but the config says {shape}")
        if dtype not in _FLOATS:
            raise UserError(
                f"{folder}: {name} is {dtype}; quantised weights are not supported, only "
                f"{', '.join(_FLOATS)}"
            )


def _read_array(
    row: Row, tensors: Mapping[str, Lazy], leaf: jax.ShapeDtypeStruct, sharding: Any
) -> jax.Array:
    blocks: dict[Spans, np.ndarray] = {}

    def block(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        # Devices that hold copies of a slice share one reading of it.
        spans = tuple(span.indices(size) for span, size in zip(index, leaf.shape, strict=True))
        if spans not in blocks:
            blocks[spans] = _read_block(row, tensors, spans, leaf.dtype)
        return blocks[spans]

    return jax.make_array_from_callback(leaf.shape, sharding, block)


def _read_block(row: Row, tensors: Mapping[str, Lazy], spans: Spans, dtype: Any) -> np.ndarray:
    leading, inner = spans[: row.leading], spans[row.leading :]
    index = row.their_index([slice(*span) for span in inner])
    sizes = [stop - start for start, stop, _ in spans]
    out = np.empty(sizes, dtype)
    for place in row.indices(sizes):
        indices = [start + at for (start, _, _), at in zip(leading, place, strict=True)]
        out[place] = row.turned(tensors[row.name(*indices)][index])
    return out


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

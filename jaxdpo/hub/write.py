"""Parameters → a Hugging Face model folder that transformers loads, without torch."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdpo.devices.sharding import path_name
from jaxdpo.hub.carried import Carried
from jaxdpo.hub.export import TensorSpec, exporting, write_tensors
from jaxdpo.hub.families import Row, config_to_hf, family_of
from jaxdpo.hub.read import WEIGHTS
from jaxdpo.hub.tokenizer_files import write_tokenizer
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.dtypes import stays_fp32
from jaxdpo.storage.lazy_array import Stored

# The default of transformers: small enough for any file system, few enough files.
MAX_SHARD_BYTES = 5 * 10**9


def save_pretrained(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    hf_config: Mapping[str, Any],
    files: Mapping[str, str] = MappingProxyType({}),
    dtype: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model folder: config, generation config, tokenizer with its template, weights.

    The folder appears under its name only when it is complete, on disk and read back. With several
    processes, all must call this; the first one writes.

    Args:
      folder: Where to. An earlier export there is replaced; other folders are refused.
      config: Architecture.
      params: Parameters, sharded or not, or `Stored` ones.
      tokenizer: Hugging Face tokenizer; None to leave it out.
      hf_config: config.json that the model came with, or `{"model_type": ...}` for a new one.
      files: Text of other files of the folder, by name: README.md, and generation_config.json if it
        is not to be made from the config's token ids.
      dtype: Of the weights; None to keep that of `params`.
      max_shard_bytes: Most bytes of weights in one file.

    Raises:
      UserError: If the family cannot express `config`, or the folder cannot be written.
    """
    model = ModelFiles(config, params, tokenizer, hf_config, files)
    write_model(folder, model, dtype, max_shard_bytes)


@dataclass(frozen=True)
class ModelFiles:
    """The contents of a model folder.

    Attributes:
      config: Architecture.
      params: Parameters, sharded or not, or `Stored` ones.
      tokenizer: Hugging Face tokenizer; None to leave it out.
      hf_config: config.json that the model came with, or `{"model_type": ...}` for a new one.
      files: Text of other files, by name.
      carried: What belongs to images and stays as it was; None of a text model.
    """

    config: ModelConfig
    params: Params
    tokenizer: Any
    hf_config: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    carried: Carried | None = None


def write_model(
    folder: str | Path,
    model: ModelFiles,
    dtype: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model folder, as `save_pretrained` does.

    Args:
      folder: Where to.
      model: What is written.
      dtype: Of the weights; None to keep that of the parameters. What is carried keeps its own.
      max_shard_bytes: Most bytes of weights in one file.

    Raises:
      UserError: If the family cannot express the architecture, or the folder cannot be written.
    """
    rows = family_of(model.hf_config).rows(model.config)
    # Shapes are known before any value, so the header of a file can be written first and no more
    # than one tensor has to be on the host.
    specs, arrays = tensor_specs(rows, model.params, dtype), tensor_arrays(rows, model.params)
    # transformers 5 reads `dtype`, earlier versions `torch_dtype`.
    name = np.dtype(next(iter(specs.values())).dtype).name
    if model.carried is not None:
        # Under the names of the files that the model came in, which readers of the whole expect.
        specs = {model.carried.names.get(one, one): spec for one, spec in specs.items()}
        specs |= model.carried.specs()
        arrays = chain(arrays, model.carried.arrays())
    if jax.process_index() != 0:
        # Every process takes part in gathering the arrays that no process holds whole.
        for _ in arrays:
            pass
        return
    described = {
        **config_to_hf(model.config, model.hf_config), "dtype": name, "torch_dtype": name,
    }  # fmt: skip
    with exporting(Path(folder).expanduser()) as temporary:
        write_json(temporary / "config.json", described)
        write_json(temporary / "generation_config.json", _generation_config(model.hf_config))
        if model.tokenizer is not None:
            write_tokenizer(temporary, model.tokenizer)
        for path in () if model.carried is None else model.carried.files:
            shutil.copyfile(path, temporary / path.name)
        write_texts(temporary, model.files)
        _write_weights(temporary, specs, arrays, max_shard_bytes)


def tensor_specs(rows: Sequence[Row], params: Params, dtype: Any = None) -> dict[str, TensorSpec]:
    """Describes the tensors that parameters are stored in, in the order of `tensor_arrays`.

    Args:
      rows: The family's table.
      params: Parameters, or their shapes and dtypes.
      dtype: Of the tensors; None to keep that of `params`.
    """
    specs = {}
    for parts, indices in _in_order(rows, params):
        row, leaf = parts[0]
        kept = dtype is None or stays_fp32(row.path)
        shape = row.hf_shape(leaf.shape)
        specs[row.name(*indices)] = TensorSpec(shape, leaf.dtype if kept else np.dtype(dtype))
    return specs


def tensor_arrays(rows: Sequence[Row], params: Params) -> Iterator[np.ndarray]:
    """Yields the tensors' values, one at a time on the host, in the layout of the files."""
    for parts, indices in _in_order(rows, params):
        row, leaf = parts[0]
        if row.whole:
            yield row.transpose(_on_host(leaf, indices))
            continue
        # What no parameter fills stays zero, as off the diagonal of a fused adapter's lora_B.
        whole = np.zeros(row.hf_shape(leaf.shape), leaf.dtype)
        for row, leaf in parts:
            part = _on_host(leaf, indices)
            whole[row.hf_index([slice(0, size) for size in part.shape])] = row.transpose(part)
        yield whole


def _on_host(array: Any, indices: tuple[int, ...]) -> np.ndarray:
    if isinstance(array, Stored):
        return array.at(indices)
    for index in indices:
        # A traced index, so that one compiled slice serves every layer.
        array = jax.lax.dynamic_index_in_dim(array, np.int32(index), keepdims=False)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _in_order(
    rows: Sequence[Row], params: Params
) -> Iterator[tuple[list[tuple[Row, Any]], tuple[int, ...]]]:
    """Yields, for every tensor, the (row, parameter) pairs that it holds and its layer and expert.

    Single tensors come first, then those of layer after layer.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    tensors: dict[str, list[tuple[Row, Any]]] = {}
    for row in rows:
        if row.path in leaves:
            tensors.setdefault(row.hf_name, []).append((row, leaves[row.path]))
    used = [row.path for parts in tensors.values() for row, _ in parts]
    assert sorted(used) == sorted(leaves), leaves.keys() ^ set(used)
    # Layer after layer, and not tensor after tensor, so that a file of a sharded model holds whole
    # layers and a reader of some layers opens few files.
    yield from ((parts, ()) for parts in tensors.values() if not parts[0][0].leading)
    stacked = [parts for parts in tensors.values() if parts[0][0].leading]
    placed: list[tuple[int, int, Any]] = []
    for parts in stacked:
        row, leaf = parts[0]
        placed += [(row.layer(place), place, parts) for place in range(leaf.shape[0])]
    # Sorting is stable: the tensors of a layer stay in the order of the table.
    for _, place, parts in sorted(placed, key=itemgetter(0)):
        row, leaf = parts[0]
        experts = range(leaf.shape[1]) if row.leading == 2 else (None,)
        for expert in experts:
            yield parts, (place,) if expert is None else (place, expert)


def _write_weights(
    folder: Path, specs: dict[str, TensorSpec], arrays: Iterator[np.ndarray], max_bytes: int
) -> None:
    shards: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.size > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.size
    # One file needs no index, and readers look for it first.
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, specs, arrays)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / name, shard, arrays)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(spec.size for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{WEIGHTS}.index.json", index)


def _generation_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: hf_config[name] for name in names if hf_config.get(name) is not None}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file as Hugging Face does: indented, keys sorted."""
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """Returns the text of such a file."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def write_texts(folder: Path, files: Mapping[str, str]) -> None:
    """Writes files of text, given by their names."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")

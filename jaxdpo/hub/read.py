"""Hugging Face weights → parameters: strict, and each device reads its own slice.

Only safetensors are read, without torch: nothing in a model folder is ever executed or unpickled.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxdpo.devices.sharding import path_name
from jaxdpo.errors import UserError
from jaxdpo.hub.arrays import FLOATS8, Readable, Tensor
from jaxdpo.hub.families import Row, family_of, text_config, wrapper_of
from jaxdpo.hub.folder import member, read_config, read_json
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, abstract_params
from jaxdpo.storage.lazy_array import Spans, Stored

_log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"

# Tensors that old checkpoints store although they follow from the config: inverse frequencies of
# Llama's first conversions, and GPT-2's causal mask.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$|(^|\.)h\.\d+\.attn\.(masked_)?bias$")
HEAD = "lm_head.weight"
# The safetensors format's words for floats ↦ the dtype that they are exported in.
_EXPORTED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}
FLOATS = tuple(_EXPORTED)
# The head that TRL's PPO trains beside a language model; nothing of the language model reads it.
_VALUE_HEAD = re.compile(r"^v_head\.")
# What wrappers of a model put before the names of its tensors when its state dict is saved from
# inside them: torch.compile, DistributedDataParallel, FSDP, gradient checkpointing, PEFT and TRL's
# model with a value head.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|^(module\.)+|^base_model\.model\.|^pretrained_model\."
)
# The text model within a model of text and images, in the spellings of transformers 5 and 4.
_INNER = re.compile(r"^(model\.language_model\.|language_model\.model\.)")
# Numbers that quantised weights are multiplied with, in the formats of DeepSeek's fp8,
# compressed-tensors, GPTQ, AWQ and bitsandbytes.
_SCALE = re.compile(r"\.(weight_scale(_inv)?|scales|qzeros|weight\.(absmax|quant_map))$")
# What a model of text and images has beside its text model.
OF_IMAGES = re.compile(r"^(model\.)?(visual|vision_tower|multi_modal_projector)\.")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
# Names shown of a long list.
_SHOWN = 8


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
    return on_devices(lazy_params(folder, config, dtype), shardings)


def lazy_params(
    folder: Path,
    config: ModelConfig,
    dtype: Any,
    tensors: Mapping[str, Readable] | None = None,
) -> Params:
    """Opens a model folder's weights, checked and left in their files.

    Args:
      folder: Model folder with config.json and safetensors.
      config: Architecture, as `config_from_hf` gives it for that folder.
      dtype: Of the parameters.
      tensors: Name ↦ tensor of the model; None for those of the folder's files.

    Returns:
      The parameters of `config`, each a `Stored`.

    Raises:
      UserError: For missing, damaged, left-over or misshapen weights.
    """
    hf_config = read_config(folder)
    tensors = dict(open_weights(folder, hf_config) if tensors is None else tensors)
    rows = family_of(hf_config).rows(config)
    embedding = embedding_name(rows)
    if config.tied_head and HEAD in tensors and embedding in tensors:
        _check_tied(folder, tensors.pop(HEAD), tensors[embedding])
    return lazy_tree(folder, tensors, rows, abstract_params(config, dtype))


def open_weights(folder: Path, hf_config: Mapping[str, Any]) -> dict[str, Readable]:
    """Opens the tensors of a model folder under the names of its family's table.

    Returns:
      Name ↦ tensor, without what the names' wrappers and other trainers added to them.

    Raises:
      UserError: For missing or damaged files, or two tensors of one name.
    """
    family, carried = family_of(hf_config), carried_names(hf_config)
    tensors: dict[str, Readable] = {}
    for name, tensor in open_tensors(folder, WEIGHTS, head_is_tied(hf_config)).items():
        plain = plain_name(name)
        if _DERIVED.search(plain) or (carried and carried.match(name)):
            continue
        if _VALUE_HEAD.search(plain):
            _log.warning("%s: %s, a value head, is left out: DPO has no use for it", folder, name)
            continue
        if plain in tensors:
            raise UserError(f"{folder}: holds {plain} twice, once as {name}; save the model again")
        tensors[plain] = tensor
    # Some files were saved from the model without its head, as GPT-2's on the Hub.
    if not any(name.startswith(family.prefix) for name in tensors):
        tensors = {
            name if name == HEAD else family.prefix + name: tensor
            for name, tensor in tensors.items()
        }
    return tensors


def carried_names(hf_config: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Returns a pattern of the names of tensors beside the language model; None without any.

    They are those of images, or of the layers that guess several tokens ahead (the multi-token
    prediction of GLM-4.5): an export carries them along as they are.
    """
    if wrapper_of(hf_config) is not None:
        return OF_IMAGES
    ahead = hf_config.get("num_nextn_predict_layers") or hf_config.get("num_mtp_layers") or 0
    if hf_config.get("model_type") != "glm4_moe" or ahead not in range(1, _SHOWN):
        return None
    # They are numbered on from the last layer of the model.
    first = hf_config["num_hidden_layers"]
    numbers = "|".join(str(number) for number in range(first, first + ahead))
    return re.compile(rf"^model\.layers\.({numbers})\.")


def usual_dtype(tensors: Iterable[Readable]) -> str | None:
    """Returns the dtype that most weights of a folder have; None if none are floats.

    Some folders keep norms or a router in fp32 beside weights in bf16, so one tensor does not tell.
    """
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in _EXPORTED:
            sizes[_EXPORTED[tensor.dtype]] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else None


def head_is_tied(hf_config: Mapping[str, Any]) -> bool:
    """Tells whether a config.json makes the embedding the head too."""
    fields = {**family_of(hf_config).defaults, **text_config(hf_config)}
    return bool(fields.get("tie_word_embeddings", False))


def plain_name(name: str) -> str:
    """Returns a tensor's name without what a trainer's wrappers put before it.

    >>> plain_name("module._orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    # Wrappers may be nested in any order, so what one leaves is looked at again.
    while (shorter := _WRAPPERS.sub("", name)) != name:
        name = shorter
    return _INNER.sub("model.", name.replace("language_model.lm_head.", "lm_head."))


def embedding_name(rows: Iterable[Row]) -> str:
    """Returns the name of the embedding's tensor in a family's table."""
    return next(row.hf_name for row in rows if row.path == "embed/weight")


def open_tensors(folder: Path, weights: str, tied: bool = False) -> dict[str, Tensor]:
    """Opens the tensors in the safetensors of a folder, one file or several with an index.

    Args:
      folder: The folder.
      weights: Name of the file, if there is one; the index has a name made from it.
      tied: Whether the index may list a head that is not stored, because it is the embedding.

    Returns:
      Name ↦ tensor.

    Raises:
      UserError: For missing or damaged files, or files that disagree with the index.
    """
    tensors: dict[str, Tensor] = {}
    for shard, listed in _shards(folder, weights).items():
        path = member(folder, shard)
        if not path.exists():
            raise UserError(f"{path}: missing, though the index names it")
        try:
            with safe_open(path, framework="np") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                opened = {
                    name: Tensor(path, name, tuple(part.get_shape()), part.get_dtype())
                    for name, part in found.items()
                }
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or cut off ({error}); copy it again") from error
        if listed is not None and tied and HEAD not in opened:
            listed = listed - {HEAD}
        if listed is not None and opened.keys() != listed:
            raise UserError(
                f"{path}: the index lists others: {_some(sorted(opened.keys() ^ listed))}"
            )
        tensors.update(opened)
    return tensors


def _shards(folder: Path, weights: str) -> dict[str, set[str] | None]:
    """Returns each file of weights, with the tensors that the index lists for it, if any."""
    index = folder / f"{weights}.index.json"
    if index.exists():
        weight_map = read_json(folder, index.name).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: weight_map must map tensor names to file names")
        shards: dict[str, Any] = {}
        for name, shard in weight_map.items():
            shards.setdefault(str(shard), set()).add(name)
        # The single file wins, as in transformers: an index beside it is left over from a model of
        # several files that was saved there before.
        if not (folder / weights).exists():
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


def _check_tied(folder: Path, head: Readable, embedding: Readable) -> None:
    """Raises unless a stored head repeats the embedding that it is tied to."""
    rows = head.shape[0] if head.shape else 0
    # In blocks of rows, because an embedding of a large vocabulary takes gigabytes.
    blocks = ((slice(start, min(start + 4096, rows)),) for start in range(0, rows, 4096))
    same = head.shape == embedding.shape and all(
        np.array_equal(head.read(block), embedding.read(block)) for block in blocks
    )
    if not same:
        raise UserError(
            f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), but "
            "lm_head.weight differs from it; set tie_word_embeddings to false"
        )


def lazy_tree(
    folder: Path, tensors: Mapping[str, Readable], rows: Sequence[Row], expected: Params
) -> Params:
    """Returns a nested dict of `Stored` arrays, read from the tensors that a table names.

    Args:
      folder: Folder of the tensors, for messages.
      tensors: Name ↦ tensor; each must be used.
      rows: The table; rows of arrays that are not expected are skipped.
      expected: Shape and dtype of each array.

    Raises:
      UserError: If tensors are missing, left over, or of another shape.
    """
    table = {row.path: row for row in rows}
    arrays = [(table[path_name(path)], leaf) for path, leaf in jax.tree.leaves_with_path(expected)]
    _check(folder, tensors, arrays)
    return jax.tree.map_with_path(
        lambda path, leaf: _lazy(table[path_name(path)], tensors, leaf), expected
    )


def _check(
    folder: Path,
    tensors: Mapping[str, Readable],
    arrays: Sequence[tuple[Row, jax.ShapeDtypeStruct]],
) -> None:
    """Raises unless the tensors are exactly those that the arrays are stored in."""
    # Before names are listed: a hostile config.json could ask for billions of layers.
    needed = max(math.prod(leaf.shape[: row.leading]) for row, leaf in arrays)
    if needed > len(tensors):
        raise UserError(
            f"{folder}: the config asks for {needed} tensors or more; there are {len(tensors)}"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for row, leaf in arrays:
        shape = row.hf_shape(leaf.shape)
        shapes.update({row.name(*indices): shape for indices in row.indices(leaf.shape)})
    missing, unused = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    if missing or unused:
        problems = [
            f"{len(names)} {what}: {_some(sorted(names))}"
            for names, what in ((missing, "missing"), (unused, "that have no use here"))
            if names
        ]
        raise UserError(
            f"{folder}: the tensors do not fit the config; {'; '.join(problems)}"
            + _remedy(missing, unused)
        )
    for name, shape in shapes.items():
        found, dtype = tensors[name].shape, tensors[name].dtype
        if found != shape:
            raise UserError(
                f"{folder}: {name} has shape {list(found)}, but the config says {list(shape)}"
            )
        # Floats of eight bits are plain numbers where no scales lie beside them, which would have
        # been left over.
        if dtype not in (*FLOATS, *FLOATS8):
            raise UserError(
                f"{folder}: {name} is {dtype}; quantised weights are not supported, only "
                f"{', '.join(FLOATS)}"
            )


def _remedy(missing: Set[str], unused: Set[str]) -> str:
    """Returns the end of a message about tensors that do not fit, where their names say why."""
    if "score.weight" in unused:
        return (
            ". A score in the head's place makes it a reward model or classifier, which cannot "
            "answer; name the language model that it was made from"
        )
    scales = [name for name in unused if _SCALE.search(name)]
    if scales:
        return (
            f". {scales[0]} says that the weights are quantised; load the model where it was "
            "quantised, dequantise it there and save it in bfloat16"
        )
    if missing == {HEAD} and not unused:
        return (
            ". If the head is the embedding, set tie_word_embeddings to true in config.json; "
            "transformers would make up a random head"
        )
    return ""


def _lazy(row: Row, tensors: Mapping[str, Readable], leaf: jax.ShapeDtypeStruct) -> Stored:
    def read(spans: Spans) -> np.ndarray:
        leading, inner = spans[: row.leading], spans[row.leading :]
        index = row.hf_index(inner)
        sizes = [span.stop - span.start for span in spans]
        # The parameter is stacked by layer (and expert); the files hold a tensor for each.
        out = np.empty(sizes, leaf.dtype)
        for place in row.indices(sizes):
            indices = [span.start + at for span, at in zip(leading, place, strict=True)]
            out[place] = row.transpose(tensors[row.name(*indices)].read(index))
        return out

    return Stored(leaf.shape, leaf.dtype, read)


def on_devices(arrays: Params, shardings: Params | None) -> Params:
    """Puts a tree on devices, where `Stored` ones are read; None as shardings: on the first one."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = shardings or jax.tree.map(lambda _: device, arrays)
    return jax.tree.map(_on_devices, arrays, where)


def _on_devices(stored: Any, sharding: Any) -> jax.Array:
    if not isinstance(stored, Stored):
        # An array that has this sharding already is not copied.
        return jax.device_put(stored, sharding)
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        # Devices that hold copies of the same part share one read of the file.
        ends = tuple(span.indices(size)[:2] for span, size in zip(index, stored.shape, strict=True))
        if ends not in parts:
            parts[ends] = stored.read(tuple(slice(*each) for each in ends))
        return parts[ends]

    return jax.make_array_from_callback(stored.shape, sharding, part)


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""A model folder opened: its configuration and tensors, before they are put together as arrays."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.adapter import Adapter
from jaxdpo.hub.adapter_config import BaseName, base_of
from jaxdpo.hub.arrays import Readable, whole
from jaxdpo.hub.carried import Carried
from jaxdpo.hub.export import DTYPES
from jaxdpo.hub.families import config_from_hf, family_of, wrapper_of
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import check_files, member, read_config
from jaxdpo.hub.read import (
    FLOATS,
    HEAD,
    WEIGHTS,
    carried_names,
    embedding_name,
    head_is_tied,
    open_tensors,
    open_weights,
    plain_name,
)
from jaxdpo.model.config import ModelConfig

_log = logging.getLogger(__name__)

# How a processor cuts and scales images, and the template that it has beside the tokenizer's.
_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


class OpenedModel(NamedTuple):
    """An opened model before its arrays are put together.

    Attributes:
      config: Architecture.
      hf_config: config.json.
      tensors: Name ↦ tensor.
    """

    config: ModelConfig
    hf_config: Mapping[str, Any]
    tensors: dict[str, Readable]


def open_model(folder: Path, context: int | None) -> OpenedModel:
    """Opens a model folder.

    Args:
      folder: Model folder with config.json and safetensors.
      context: Longest sequence there will be, in tokens, as `config_from_hf` has it.

    Raises:
      UserError: If it is missing, damaged or not supported.
    """
    hf_config = _without_stale_quantization(folder, read_config(folder))
    return OpenedModel(
        config_from_hf(hf_config, context), hf_config, open_weights(folder, hf_config)
    )


def _without_stale_quantization(folder: Path, hf_config: dict[str, Any]) -> dict[str, Any]:
    """Drops a quantization_config that is left over beside plain weights.

    Merging a quantized model into plain weights leaves the field behind. Quantized files hold codes
    or scales beside each weight; where every tensor is a float that the family's table names, none
    is quantized.
    """
    if hf_config.get("quantization_config") is None:
        return hf_config
    plain = {name: value for name, value in hf_config.items() if name != "quantization_config"}
    family, tensors = family_of(plain), open_weights(folder, plain)
    known = {re.sub(r"\{\w\}", "0", row.hf_name) for row in family.rows(config_from_hf(plain))}
    floats = all(tensor.dtype in FLOATS for tensor in tensors.values())
    if floats and {re.sub(r"(?<=\.)\d+(?=\.)", "0", name) for name in tensors} <= known | {HEAD}:
        _log.warning("%s: its quantization_config is left over: all weights are plain", folder)
        return plain
    return hf_config


def base_folder(path: str, folder: Path, base: str | None) -> tuple[BaseName, Path]:
    """Returns the name of an adapter's base model, and its folder.

    Args:
      path: The adapter, as it was named, for messages.
      folder: Its folder.
      base: The base model, in place of the one that the folder names.

    Raises:
      UserError: If the base model is not there.
    """
    # A revision belongs to the model that the adapter names, and not to another in its place.
    named = base_of(folder) if base is None else BaseName(base, None)
    try:
        found = find_folder(named.name, revision=named.revision)
    except UserError as error:
        raise UserError(
            f"{path}: its base model is not there: {error}. If it has moved, set model.base=PATH"
        ) from error
    check_files(found)
    return named, found


def with_replaced(opened: OpenedModel, adapter: Adapter) -> OpenedModel:
    """Puts an adapter's whole tensors in the place of the base's."""
    config, hf_config, tensors = opened
    replaced = dict(adapter.replaced)
    embedding = embedding_name(family_of(hf_config).rows(config))
    if config.tied_head and not adapter.tied and {embedding, HEAD} & replaced.keys():
        # PEFT replaces the one that it names and leaves the other as it was, so they part.
        both = [replaced.get(name, tensors[embedding]) for name in (embedding, HEAD)]
        if both[0] is both[1] or np.array_equal(whole(both[0]), whole(both[1])):
            replaced.pop(HEAD, None)
        else:
            replaced.update(zip((embedding, HEAD), both, strict=True))
            config = config.model_copy(update={"tied_head": False})
    # New tokens give the embedding more rows than the base's config.json says.
    rows = replaced.get(embedding, tensors[embedding]).shape[0]
    if wrapper_of(hf_config) is not None and (rows, config.tied_head) != (
        opened.config.vocab_size,
        opened.config.tied_head,
    ):
        raise UserError(
            "an adapter that changes the vocabulary of a model of text and images, or unties its "
            "head, is not implemented; merge it where it was trained (peft's merge_and_unload())"
        )
    config = config.model_copy(update={"vocab_size": rows})
    written = {"vocab_size": rows, "tie_word_embeddings": config.tied_head}
    if wrapper_of(hf_config) is not None:
        written = {}
    return OpenedModel(config, {**hf_config, **written}, {**tensors, **replaced})


def open_carried(source: str, revision: str | None, hf_config: Mapping[str, Any]) -> Carried | None:
    """Opens what an export carries from the folder that a model came from; None for nothing.

    Args:
      source: The folder, or `org/name`.
      revision: Branch, tag or commit on the Hub; None for the newest.
      hf_config: config.json of the model.

    Raises:
      UserError: If the folder is gone, or holds a tensor that can't be written again.
    """
    carried_by = carried_names(hf_config)
    if carried_by is None:
        return None
    try:
        folder = find_folder(source, revision=revision)
        tensors = open_tensors(folder, WEIGHTS, head_is_tied(hf_config))
    except UserError as error:
        of_what = "images" if wrapper_of(hf_config) else "multi-token prediction"
        raise UserError(
            f"{source}: the tensors of this model's {of_what} are there alone, and an export "
            f"carries them along: {error}"
        ) from error
    carried = {name: tensor for name, tensor in tensors.items() if carried_by.match(name)}
    for name, tensor in carried.items():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{folder}: {name} is {tensor.dtype}, which can't be carried through an export; "
                f"there are {', '.join(DTYPES)}"
            )
    names = {plain_name(name): name for name in tensors if name not in carried}
    files = tuple(member(folder, name) for name in _FILES if member(folder, name).exists())
    return Carried(carried, names, files)

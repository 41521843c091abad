"""Reads LoRA adapters in the format of PEFT, on top of the tensors of their base model.

Whatever PEFT can say module by module becomes one of three things:

- a pair `a`, `b` of a layer's linear map. All pairs have one rank and one scale: those of lower
  rank are filled up with zeros, which get no gradient and stay zero, and a scale of their own goes
  into `b`. Layers without an adapter have zeros.
- a replaced tensor of the base: modules_to_save, trained biases, resized embeddings, trained rows
  of single tokens, and adapters of embedding or head, which are added into them.
- the magnitudes `m` of DoRA beside a pair. Layers without an adapter have the lengths of their own
  weights.

Where a family keeps several linear maps in one tensor (Phi-3's qkv_proj, GPT-2's c_attn), PEFT has
one adapter for all of them, whose `lora_A` they share.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from pydantic import ValidationError

from jaxdpo.devices.sharding import shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_config import AdapterConfig, read_adapter_config
from jaxdpo.hub.adapter_pairs import (
    Magnitudes,
    Pair,
    Pairs,
    block_diagonal,
    magnitude_reader,
    reader,
    without_start,
)
from jaxdpo.hub.adapter_replaced import (
    ADAPTER_WEIGHTS,
    TOKENS,
    adapted_module,
    base_weight,
    check_replaced,
    some_names,
)
from jaxdpo.hub.arrays import Readable, Transposed
from jaxdpo.hub.families import Row, family_of
from jaxdpo.hub.read import FLOATS, HEAD, embedding_name, on_devices, open_tensors, plain_name
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, abstract_params
from jaxdpo.model.groups import layers_with
from jaxdpo.model.lora import LoraConfig, LoraParams
from jaxdpo.storage.lazy_array import Stored

# The parts of a module's adapter in the names of its tensors. `.default`, PEFT's name of an adapter
# among several, stands in files that were not written by save_pretrained.
_PART = re.compile(
    r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.(?!weight$)\w+)?(\.weight)?$"
)
# The rows of an embedding or head that trainable_token_indices trains, in place of the base's.
_TOKEN_ROWS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.\w+)?$")
# A module that is stored whole: wrapped by modules_to_save, or beneath an adapter.
_WRAPPED = re.compile(r"\.(modules_to_save(\.\w+)?|base_layer)(?=\.)")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, opened and checked against its base model.

    Attributes:
      pairs: The adapters of linear maps.
      config: Their common rank, scale and targets; None if there are none.
      replaced: Name of a tensor of the base ↦ the one in its place.
      magnitudes: Path of a linear map, and layer ↦ DoRA's magnitudes of its outputs.
      tied: Whether a replaced embedding is the head of a tied model too.
    """

    pairs: Pairs
    config: LoraConfig | None
    replaced: dict[str, Readable] = field(default_factory=dict)
    magnitudes: Magnitudes = field(default_factory=dict)
    tied: bool = False

    def lora(self, model: ModelConfig, params: Params | None = None) -> LoraParams | None:
        """Returns the adapters that stay beside the base, left in their file; None for none.

        Args:
          model: Architecture of the base.
          params: The base's parameters, which DoRA needs; None if there is no DoRA.
        """
        if self.config is None:
            return None
        config, layers = self.config, {}
        for path, (inputs, outputs) in _map_shapes(model).items():
            if path not in self.pairs:
                continue
            _, part, name = path.split("/")
            pairs, count = self.pairs[path], len(layers_with(model, part))
            a_shape, b_shape = (count, inputs, config.rank), (count, config.rank, outputs)
            layers.setdefault(part, {})[name] = {
                "a": Stored(a_shape, np.dtype(np.float32), reader(pairs, "a", config.scale)),
                "b": Stored(b_shape, np.dtype(np.float32), reader(pairs, "b", config.scale)),
            }
            if config.use_dora:
                assert params is not None
                kernel = params["layers"][part][name]["kernel"]
                read = magnitude_reader(pairs, self.magnitudes[path], kernel)
                layers[part][name]["m"] = Stored((count, outputs), np.dtype(np.float32), read)
        return {"layers": layers}


def load_adapter(
    folder: Path, model: ModelConfig, hf_config: Mapping[str, Any], mesh: Mesh | None = None
) -> tuple[LoraParams, LoraConfig]:
    """Loads a PEFT adapter folder that holds plain adapters of linear maps alone.

    Args:
      folder: Adapter folder.
      model: Architecture of the base model.
      hf_config: config.json of the base model.
      mesh: Where to; None for the first device.

    Raises:
      UserError: For another kind of adapter, or tensors that do not fit the base model.
    """
    lora, lora_config = lazy_adapter(folder, model, hf_config)
    return on_devices(lora, None if mesh is None else shardings_for(lora, mesh)), lora_config


def lazy_adapter(
    folder: Path, model: ModelConfig, hf_config: Mapping[str, Any]
) -> tuple[LoraParams, LoraConfig]:
    """Opens what `load_adapter` loads, with the adapters left in their file.

    Args:
      folder: Adapter folder.
      model: Architecture of the base model.
      hf_config: config.json of the base model.

    Returns:
      The adapters, each array a `Stored`, and their rank and scale.

    Raises:
      UserError: For another kind of adapter, or tensors that do not fit the base model.
    """
    adapter = open_adapter(folder, model, hf_config)
    if adapter.magnitudes:
        raise UserError(f"{folder}: DoRA needs its base model; load it with load_policy")
    lora = adapter.lora(model)
    if lora is None or adapter.config is None:
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: adapts no linear map of the model")
    return lora, adapter.config


def open_adapter(
    folder: Path,
    model: ModelConfig,
    hf_config: Mapping[str, Any],
    base: Mapping[str, Readable] | None = None,
) -> Adapter:
    """Opens a PEFT adapter folder and checks it against its base model.

    Args:
      folder: Adapter folder.
      model: Architecture of the base model.
      hf_config: config.json of the base model.
      base: Name ↦ tensor of the base model; None if no adapter of embedding or head, and none that
        was started from the base's own weights, is expected.

    Raises:
      UserError: For a kind of adapter that is not implemented, or tensors that do not fit the base.
    """
    config = read_adapter_config(folder)
    parts, replaced = _sort_tensors(open_tensors(folder, ADAPTER_WEIGHTS))
    table = family_of(hf_config).rows(model)
    modules, embedding = _modules(table, model), embedding_name(table)
    singles = {embedding.removesuffix(".weight"), HEAD.removesuffix(".weight")}
    left = parts.keys() - modules.keys() - singles
    if left or not parts.keys() | replaced.keys():
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS}: adapts no linear map of the model"
            if not left
            else f"{folder}: {len(left)} adapters that have no use here: "
            + some_names(f"base_model.model.{module}" for module in left)
        )
    for module in parts.keys() & singles:
        name = f"{module}.weight"
        weight = replaced.get(name) or base_weight(base or {}, name, embedding)
        if weight is None:
            raise UserError(f"{folder}: adapts {module}, which the base model does not have")
        replaced[name] = adapted_module(config, module, parts[module], weight, name == embedding)
    pairs: Pairs = {}
    magnitudes: Magnitudes = {}
    for module in (name for name in parts if name in modules):
        layer, rows = modules[module]
        tensors = parts[module]
        for row, pair in zip(rows, _pairs_of(folder, config, module, tensors, rows), strict=True):
            path = row.path.removesuffix("/kernel")
            if config.residual is not None:
                pair = without_start(pair, config.residual, _weight_of(folder, base, row, layer))
            pairs.setdefault(path, {})[layer] = pair
            if "magnitude_vector" in tensors:
                magnitude = (tensors["magnitude_vector"], row.columns)
                magnitudes.setdefault(path, {})[layer] = magnitude
    check_replaced(config, replaced, table, model)
    _check_shapes(folder, pairs, model)
    # Of a tied model, PEFT puts trained rows of the embedding into the head too.
    rows_of_both = TOKENS in parts.get(embedding.removesuffix(".weight"), ())
    tied = config.tied or (rows_of_both and HEAD not in replaced)
    return Adapter(pairs, _common(config, pairs), replaced, magnitudes, tied)


def _sort_tensors(
    tensors: Mapping[str, Readable],
) -> tuple[dict[str, dict[str, Readable]], dict[str, Readable]]:
    """Sorts tensors into the parts of each module's adapter, and tensors that are stored whole."""
    parts: dict[str, dict[str, Readable]] = {}
    replaced: dict[str, Readable] = {}
    for name, tensor in tensors.items():
        # With modules_to_save some files hold the base's own module too, as it was before training.
        if ".original_module." in name:
            continue
        name = plain_name(name)
        found = _PART.match(name)
        if found:
            parts.setdefault(found["module"], {})[found["part"]] = tensor
        elif found := _TOKEN_ROWS.match(name):
            parts.setdefault(found["module"], {})[TOKENS] = tensor
        else:
            replaced[_WRAPPED.sub("", name)] = tensor
    return parts, replaced


def _modules(table: Iterable[Row], model: ModelConfig) -> dict[str, tuple[int, list[Row]]]:
    """Returns each module that holds linear maps, with its layer and the rows of the maps.

    Layers are counted among those that have the module.
    """
    modules: dict[str, tuple[int, list[Row]]] = {}
    adapted = _map_shapes(model)
    for row in table:
        if row.leading == 1 and row.path.removesuffix("/kernel") in adapted:
            for layer in range(len(layers_with(model, row.path.split("/")[1]))):
                name = row.name(layer).removesuffix(".weight")
                modules.setdefault(name, (layer, []))[1].append(row)
    return modules


def _map_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Returns the inputs and outputs of each linear map of a layer that may have an adapter."""
    layers = abstract_params(model, "float32")["layers"]
    return {
        f"layers/{part}/{name}": linear["kernel"].shape[1:]
        for part, linears in layers.items()
        # Nor have the MLPs of layers without experts, where others have them.
        if part != "dense_mlp"
        for name, linear in linears.items()
        # The kernels of experts are one level deeper, and have no adapters.
        if isinstance(linear, dict) and "kernel" in linear
    }


def _pairs_of(
    folder: Path,
    config: AdapterConfig,
    module: str,
    tensors: Mapping[str, Readable],
    rows: list[Row],
) -> list[Pair]:
    """Returns the adapters of the maps that a module holds, in the order of its rows."""
    if not {"A", "B"} <= tensors.keys() <= {"A", "B", "magnitude_vector"}:
        raise UserError(f"{folder}: {module} needs lora_A and lora_B; it has {some_names(tensors)}")
    if config.dora != ("magnitude_vector" in tensors):
        has = "no lora_magnitude_vector" if config.dora else "a lora_magnitude_vector"
        raise UserError(
            f"{folder}: use_dora is {str(config.dora).lower()}, but {module} has {has}; save the "
            "adapter again with peft"
        )
    a, b = tensors["A"], tensors["B"]
    rank, stated = a.shape[0], config.rank_of(module)
    if rank != stated or b.shape[1:] != (rank,):
        raise UserError(
            f"{folder}: the adapter of {module} has shape {list(a.shape)} and {list(b.shape)}, but "
            f"its rank is {stated} by r and rank_pattern of {config.path.name}"
        )
    scale = config.scale_of(module)
    spans = [row.columns for row in rows]
    each = rank // len(rows)
    if len(rows) > 1 and rank == each * len(rows) and block_diagonal(b, spans, each):
        return [
            Pair(a, b, slice(k * each, (k + 1) * each), span, scale) for k, span in enumerate(spans)
        ]
    return [Pair(a, b, slice(0, rank), span, scale) for span in spans]


def _weight_of(folder: Path, base: Mapping[str, Readable] | None, row: Row, layer: int) -> Readable:
    """Returns the weight `[out, in]` of a module of the base, whole."""
    if base is None:
        raise UserError(f"{folder}: reading this adapter needs the weights of its base model")
    tensor = base[row.name(layer)]
    return tensor if row.transposed else Transposed(tensor)


def _check_shapes(folder: Path, pairs: Pairs, model: ModelConfig) -> None:
    for path, (inputs, outputs) in _map_shapes(model).items():
        for layer, pair in pairs.get(path, {}).items():
            expected = outputs if pair.columns is None else pair.columns.total
            if pair.a.shape[1] != inputs or pair.b.shape[0] != expected:
                raise UserError(
                    f"{folder}: the adapter of {path} in layer {layer} has shape "
                    f"{list(pair.a.shape)} and {list(pair.b.shape)}, but the base model's map has "
                    f"{inputs} inputs and {expected} outputs"
                )
            for tensor in (pair.a, pair.b):
                if tensor.dtype not in FLOATS:
                    raise UserError(f"{folder}: an adapter of {path} is {tensor.dtype}")


def _common(config: AdapterConfig, pairs: Pairs) -> LoraConfig | None:
    """Returns the one rank and scale under which all pairs are held."""
    each = [pair for layers in pairs.values() for pair in layers.values()]
    if not each:
        return None
    rank, scale = max(pair.rank for pair in each), each[0].scale
    # Said as the file says it where its rule gives the scale of all of them.
    exact = rank == config.rank and all(pair.scale == config.scale for pair in each)
    try:
        return LoraConfig(
            rank=rank,
            alpha=config.alpha if exact else scale * rank,
            targets=tuple(sorted({path.split("/")[-1] for path in pairs})),
            dropout=config.dropout,
            use_rslora=exact and config.rank_stabilised,
            use_dora=config.dora,
        )
    except ValidationError as error:
        raise UserError(f"{config.path}: {error.errors()[0]['msg']}") from None

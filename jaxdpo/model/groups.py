"""Layers of unlike blocks: which layers have which part, and which run in one scan.

All layers have attention and norms; of a model with experts some have one MLP in their place. A
part that only some layers have is stacked over those layers, in their order:

    layers 0 1 2 3, dense: 0        attention  [4, ...]
                                    dense_mlp  [1, ...]   of layer 0
                                    mlp        [3, ...]   of layers 1, 2, 3

So a model whose layers are all alike has every part stacked over all layers, and a tree of
parameters, or of adapters, says by itself how many layers a part has.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax

from jaxdpo.model.config import ModelConfig

# A model's MLPs, or experts; and the MLPs of the layers without experts.
MLPKind = Literal["mlp", "dense_mlp"]


class LayerGroup(NamedTuple):
    """Consecutive layers whose blocks are alike.

    Attributes:
      kind: The part that is their MLP.
      start: Number of the first layer.
      stop: Number after that of the last.
    """

    kind: MLPKind
    start: int
    stop: int


def mlp_kinds(config: ModelConfig) -> tuple[MLPKind, ...]:
    """Returns the part that is the MLP of each layer."""
    dense = config.mlp.experts and config.mlp.experts.dense
    without_experts = set(dense.layers) if dense else set()
    return tuple(
        "dense_mlp" if number in without_experts else "mlp" for number in range(config.num_layers)
    )


def layers_with(config: ModelConfig, part: str) -> tuple[int, ...]:
    """Returns the numbers of the layers that a part of the block is stacked over.

    Args:
      config: Architecture.
      part: Name of the part, such as "attention" or "mlp".
    """
    kinds = mlp_kinds(config)
    if part not in ("mlp", "dense_mlp"):
        return tuple(range(config.num_layers))
    return tuple(number for number, kind in enumerate(kinds) if kind == part)


def layer_groups(config: ModelConfig) -> list[LayerGroup]:
    """Returns the groups of a model's layers, in order; one where all layers are alike."""
    groups, start = [], 0
    for kind, members in groupby(mlp_kinds(config)):
        stop = start + len(list(members))
        groups.append(LayerGroup(kind, start, stop))
        start = stop
    return groups


def of_group(config: ModelConfig, layers: Mapping[str, Any], group: LayerGroup) -> dict[str, Any]:
    """Returns the parts of a group's layers, stacked over these alone.

    Args:
      config: Architecture.
      layers: Parts of the block, each stacked over the layers that have it.
      group: The group.
    """
    parts = {}
    for part, stacked in layers.items():
        numbers = layers_with(config, part)
        places = [at for at, number in enumerate(numbers) if group.start <= number < group.stop]
        if len(places) == len(numbers):
            # Nothing is sliced, and so nothing copied, where one group has all of them.
            parts[part] = stacked
        elif places:
            first, last = places[0], places[-1] + 1
            parts[part] = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], stacked)
    return parts


def of_layer(config: ModelConfig, layers: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Returns the parts of one layer.

    Args:
      config: Architecture.
      layers: Parts of the block, each a tuple over the layers that have it.
      number: Number of the layer.
    """
    return {
        part: each[numbers.index(number)]
        for part, each in layers.items()
        if number in (numbers := layers_with(config, part))
    }

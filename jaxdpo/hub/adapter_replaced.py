"""Tensors that an adapter puts in the place of its base's: saved modules, embedding and head."""

from collections.abc import Iterable, Mapping

from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_config import AdapterConfig
from jaxdpo.hub.arrays import LowRankSum, Readable, RowsReplaced, Transposed
from jaxdpo.hub.families import Row
from jaxdpo.hub.read import HEAD
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.groups import layers_with

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The part of a module's adapter that trainable_token_indices trains.
TOKENS = "token rows"


def base_weight(base: Mapping[str, Readable], name: str, embedding: str) -> Readable | None:
    """Returns the base's tensor of embedding or head; a tied head has none of its own.

    Args:
      base: Name ↦ tensor of the base model.
      name: Name of the tensor.
      embedding: Name of the embedding's.
    """
    # A stored head wins, as one that was untied from its embedding has.
    return base.get(name) or (base.get(embedding) if name == HEAD else None)


def adapted_module(
    config: AdapterConfig,
    module: str,
    tensors: Mapping[str, Readable],
    weight: Readable,
    embedding: bool,
) -> Readable:
    """Returns embedding or head with its adapter in it; such adapters are not trained further.

    Args:
      config: The adapter's configuration.
      module: Name of the module.
      tensors: Part of its adapter ↦ tensor.
      weight: Weight of the base's module `[vocabulary, hidden]`.
      embedding: Whether the module is the input embedding.

    Raises:
      UserError: For parts that are not implemented, or do not fit the base.
    """
    if tensors.keys() == {TOKENS}:
        return _with_rows(config, module, tensors[TOKENS], weight, embedding)
    scale = config.scale_of(module)
    if tensors.keys() == {"embedding_A", "embedding_B"}:
        left, right = tensors["embedding_A"], tensors["embedding_B"]
        return LowRankSum(weight, Transposed(left), Transposed(right), scale)
    if tensors.keys() == {"A", "B"}:
        return LowRankSum(weight, tensors["B"], tensors["A"], scale)
    raise UserError(
        f"{config.path.parent}: the adapter of {module} ({some_names(tensors)}) is not implemented"
    )


def _with_rows(
    config: AdapterConfig, module: str, rows: Readable, weight: Readable, embedding: bool
) -> Readable:
    """Returns embedding or head with the rows that the adapter trained."""
    places = config.tokens_of(module, embedding)
    count, columns = weight.shape
    if rows.shape != (len(places), columns) or any(place >= count for place in places):
        raise UserError(
            f"{config.path}: trainable_token_indices names {len(places)} tokens of {module}, up to "
            f"{max(places, default=None)}, but {ADAPTER_WEIGHTS} holds {list(rows.shape)} and the "
            f"base model {list(weight.shape)}"
        )
    return RowsReplaced(weight, rows, places)


def check_replaced(
    config: AdapterConfig,
    replaced: Mapping[str, Readable],
    table: Iterable[Row],
    model: ModelConfig,
) -> None:
    """Checks that whole tensors are the model's, and all that the configuration names.

    Args:
      config: The adapter's configuration.
      replaced: Name of a tensor of the base ↦ the one in its place.
      table: The family's table.
      model: Architecture.

    Raises:
      UserError: If they are not.
    """
    known = {HEAD}
    for row in table:
        count = len(layers_with(model, row.path.split("/")[1])) if row.leading == 1 else 0
        layers = range(count)
        known |= {row.name(layer) for layer in layers} if row.leading else {row.hf_name}
    unknown = replaced.keys() - known
    if unknown:
        raise UserError(
            f"{config.path.parent}: {len(unknown)} tensors that have no use here: "
            + some_names(unknown)
        )
    for name in config.saved:
        if not any(f".{name}." in f".{tensor}" for tensor in replaced):
            raise UserError(
                f"{config.path}: modules_to_save names {name}, but {ADAPTER_WEIGHTS} holds no "
                "tensor of it; save the adapter again with peft"
            )


def some_names(names: Iterable[str]) -> str:
    """Returns the first names of several, and how many more there are."""
    shown = sorted(names)
    more = len(shown) - 4
    return ", ".join(shown[:4]) + (f" and {more} more" if more > 0 else "")

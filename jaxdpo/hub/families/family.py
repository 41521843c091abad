"""What a family is, and what most families share: the fields and tensors of Llama."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.hub.families.row import Row, linear
from jaxdpo.hub.rope import rope_from_hf, rope_to_hf
from jaxdpo.model.config import ModelConfig

HfConfig = Mapping[str, Any]
# Fields of ModelConfig as nested dicts.
Fields = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """How one `model_type` of Hugging Face maps to a `ModelConfig` and its parameters.

    Attributes:
      model_type: As in config.json.
      architecture: Class that transformers loads.
      rows: The table of all tensors that a model of this architecture may have.
      read: (config.json, longest sequence or None) → the fields of ModelConfig.
      write: The inverse: (config, original config.json) → fields of config.json.
      defaults: Values of config fields that may be missing, as transformers has them.
      only: Fields whose other values would change the arithmetic in a way not implemented.
      names: Names of Llama's fields ↦ this family's, where they differ.
      prefix: Start of tensor names that old files leave out.
    """

    model_type: str
    architecture: str
    rows: Callable[[ModelConfig], tuple[Row, ...]]
    read: Callable[[HfConfig, int | None], Fields]
    write: Callable[[ModelConfig, HfConfig], dict[str, Any]]
    defaults: HfConfig = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""


# Their names of activations → ours; of several, the first is written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
}


def activation(hf: HfConfig, name: str) -> str:
    """Our name of the activation that a field of config.json names.

    Raises:
      UserError: If it is not implemented.
    """
    if hf[name] not in ACTIVATIONS:
        raise UserError(
            f"config.json: {name} {hf[name]!r} is not implemented; there are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[hf[name]]


def written_activation(config: ModelConfig, original: HfConfig, name: str) -> str:
    """Their name of the activation: the original's, if it means the same."""
    ours = config.mlp.activation
    if ACTIVATIONS.get(original.get(name, "")) == ours:
        return original[name]
    return next(theirs for theirs, meant in ACTIVATIONS.items() if meant == ours)


def merged(fields: Fields, changes: Fields) -> Fields:
    """The fields with others in their places, dicts merged."""
    result = dict(fields)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if inner else value
    return result


_MLP = ("gate", "up", "down")


def llama_rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table of Llama."""
    layer = "model.layers.{i}"
    return (
        Row("embed/weight", "model.embed_tokens.weight"),
        Row("norm/scale", "model.norm.weight"),
        Row("head/kernel", "lm_head.weight", transposed=True),
        Row("layers/attention_norm/scale", f"{layer}.input_layernorm.weight"),
        Row("layers/mlp_norm/scale", f"{layer}.post_attention_layernorm.weight"),
        *(row for n in "qkvo" for row in linear(f"attention/{n}", f"{layer}.self_attn.{n}_proj")),
        *(
            row
            for n in ("gate", "up", "down")
            for row in linear(f"mlp/{n}", f"{layer}.mlp.{n}_proj")
        ),
    )


QK_NORM_ROWS = tuple(
    Row(f"layers/attention/{n}_norm/scale", f"model.layers.{{i}}.self_attn.{n}_norm.weight")
    for n in "qk"
)


def with_rows(base: tuple[Row, ...], *rows: Row, without: Sequence[str] = ()) -> tuple[Row, ...]:
    """A table with rows added; rows of the same parameter, and those of `without`, are left out."""
    added = {row.ours for row in rows}
    left = tuple(
        row
        for row in base
        if row.ours not in added and not any(row.ours.startswith(path) for path in without)
    )
    return left + rows


LLAMA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
LLAMA_ONLY = {"quantization_config": (None,)}


def llama_fields(hf: HfConfig, context: int | None, theta: float = 10000.0) -> Fields:
    """The fields that a Llama has."""
    heads = hf["num_attention_heads"]
    return {
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "attention": {
            "num_heads": heads,
            "num_kv_heads": hf.get("num_key_value_heads") or heads,
            "head_dim": hf.get("head_dim") or hf["hidden_size"] // heads,
            "qkv_bias": hf["attention_bias"],
            "output_bias": hf["attention_bias"],
            "rope": rope_from_hf(hf, context, theta),
        },
        "mlp": {
            "intermediate_size": hf["intermediate_size"],
            "bias": hf["mlp_bias"],
            "activation": activation(hf, "hidden_act"),
        },
        "norm": {"eps": hf["rms_norm_eps"]},
        "tied_head": hf["tie_word_embeddings"],
    }


def written_sizes(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    """The fields of config.json that all families with rotary positions share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.attention.num_heads,
        "num_key_value_heads": config.attention.num_kv_heads,
        "head_dim": config.attention.head_dim,
        "hidden_act": written_activation(config, original, "hidden_act"),
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied_head,
        **({} if config.attention.rope is None else rope_to_hf(config.attention.rope, original)),
    }


def windows_of(hf: HfConfig, sliding: Sequence[bool], window: int | None) -> Fields:
    """The attention's windows, by `layer_types` if it is given, else by `sliding`.

    Raises:
      UserError: For a kind of layer that is not implemented, or a window that is not given.
    """
    types = hf.get("layer_types")
    if types is not None:
        for layer_type in types:
            if layer_type not in ("full_attention", "sliding_attention"):
                raise UserError(
                    f"config.json: layer_types has {layer_type!r}, which is not implemented"
                )
        sliding = [layer_type == "sliding_attention" for layer_type in types]
    if not any(sliding):
        return {"windows": None}
    if window is None:
        raise UserError(
            "config.json: layer_types has sliding_attention, but use_sliding_window or "
            "sliding_window is off; set both, or make every layer full_attention"
        )
    return {"windows": tuple(window if slides else None for slides in sliding)}


def written_windows(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window`, where there is one, and `layer_types`."""
    windows = config.attention.windows or (None,) * config.num_layers
    given = [window for window in windows if window is not None]
    return {
        **({"sliding_window": given[0]} if given else {}),
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in windows
        ],
    }

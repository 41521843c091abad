"""The type of a family, and the fields and tensors of Llama that most families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.hub.families.row import Row, linear
from jaxdpo.hub.rope import rope_from_hf, rope_to_hf
from jaxdpo.model.config import ModelConfig

HfConfig = Mapping[str, Any]
# Fields of ModelConfig as nested dicts, before pydantic validates them.
Fields = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """The mapping of one `model_type` of Hugging Face to a `ModelConfig` and its parameters.

    Attributes:
      model_type: Value of the field in config.json.
      architecture: Class that transformers loads.
      rows: Returns the table of all tensors that a model of this architecture may have.
      read: (config.json, longest sequence or None) → the fields of ModelConfig.
      write: The inverse: (config, original config.json) → fields of config.json.
      defaults: Values of config fields that may be missing, the same as in transformers.
      only: The values that are implemented of fields whose others would change the arithmetic.
      names: Llama's name of a field ↦ this family's, where they differ.
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
    prefix: str = "model."


# Names of activations in config.json → in ModelConfig. Where several mean the same, the first one
# is written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "relu2": "relu2",
}


def activation(hf: HfConfig, name: str) -> str:
    """Reads the activation that a field of config.json names.

    Raises:
      UserError: If it is not implemented.
    """
    if hf[name] not in ACTIVATIONS:
        raise UserError(
            f"config.json: {name} {hf[name]!r} is not implemented; there are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[hf[name]]


def activation_to_hf(config: ModelConfig, original: HfConfig, name: str) -> str:
    """Returns the name of the activation in config.json: the original's, if it means the same.

    Args:
      config: Architecture.
      original: config.json that the model came with.
      name: The field of config.json.
    """
    meant = config.mlp.activation
    if ACTIVATIONS.get(original.get(name, "")) == meant:
        return original[name]
    return next(hf_name for hf_name, each in ACTIVATIONS.items() if each == meant)


def merged(fields: Fields, changes: Fields) -> Fields:
    """Returns the fields with some of them changed; dicts within are merged."""
    result = dict(fields)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if inner else value
    return result


_MLP = ("gate", "up", "down")


def llama_rows(config: ModelConfig) -> tuple[Row, ...]:
    """Returns the table of Llama."""
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


# Qwen3, Gemma 3 and OLMo norm queries and keys before they are rotated.
QK_NORM_ROWS = tuple(
    Row(f"layers/attention/{n}_norm/scale", f"model.layers.{{i}}.self_attn.{n}_norm.weight")
    for n in "qk"
)


def with_rows(base: tuple[Row, ...], *rows: Row, without: Sequence[str] = ()) -> tuple[Row, ...]:
    """Returns a table with rows added, in place of those of the same parameter.

    Args:
      base: The table.
      rows: The rows to add.
      without: Starts of paths whose rows are left out.
    """
    added = {row.path for row in rows}
    left = tuple(
        row
        for row in base
        if row.path not in added and not any(row.path.startswith(path) for path in without)
    )
    return left + rows


# Those of transformers' LlamaConfig; other families start from them and state the differences.
LLAMA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
# Weights in another format would be read as if they were plain numbers.
LLAMA_ONLY = {"quantization_config": (None,)}


def llama_fields(
    hf: HfConfig, context: int | None, theta: float = 10000.0, partial: float | None = None
) -> Fields:
    """Reads the fields that a Llama has.

    Args:
      hf: config.json, with the family's defaults filled in.
      context: Longest sequence there will be, in tokens; None for the original context.
      theta: The family's default base of the rotary frequencies.
      partial: Share of each head that the family rotates by default; None for whole heads.
    """
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
            "rope": rope_from_hf(hf, context, theta, partial),
        },
        "mlp": {
            "intermediate_size": hf["intermediate_size"],
            "bias": hf["mlp_bias"],
            "activation": activation(hf, "hidden_act"),
        },
        "norm": {"eps": hf["rms_norm_eps"]},
        "tied_head": hf["tie_word_embeddings"],
    }


def sizes_to_hf(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    """Writes the fields of config.json that all families with rotary positions share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.attention.num_heads,
        "num_key_value_heads": config.attention.num_kv_heads,
        "head_dim": config.attention.head_dim,
        "hidden_act": activation_to_hf(config, original, "hidden_act"),
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied_head,
        **({} if config.attention.rope is None else rope_to_hf(config.attention.rope, original)),
    }


def windows_of(hf: HfConfig, sliding: Sequence[bool], window: int | None) -> Fields:
    """Reads the attention's windows, by `layer_types` if it is given, else by `sliding`.

    Args:
      hf: config.json.
      sliding: Whether each layer has a window, by the family's own rule.
      window: Positions that such a layer sees; None if windows are off.

    Raises:
      UserError: For a kind of layer that is not implemented, or a window that is not given.
    """
    # transformers ≥ 4.54 writes the types of all layers; older configs leave them to the rule.
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


def windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Writes `layer_types`, and `sliding_window` where a layer has one."""
    # config.json has one size for all layers that have a window.
    windows = config.attention.windows or (None,) * config.num_layers
    given = [window for window in windows if window is not None]
    return {
        **({"sliding_window": given[0]} if given else {}),
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in windows
        ],
    }

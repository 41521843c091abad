"""The model families: for each, its tensors' names and its config fields, both ways.

A family is a difference from Llama: a table of rows `ours ↔ Hugging Face name`, read forwards to
load and backwards to save, and two functions between the fields of its config.json and ours. To add
one, append a `Family` to `FAMILIES`; the tests of the hub run over all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdpo.errors import UserError, nearest
from jaxdpo.hub.rope import rope_from_hf, rope_to_hf
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig

HfConfig = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a family's table.

    Attributes:
      ours: Path of the parameter, such as "layers/mlp/up/kernel".
      theirs: Name of the tensor, with {i} for the layer where ours is stacked.
      transposed: Whether theirs is `[out, in]` where ours is `[in, out]`.
    """

    ours: str
    theirs: str
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether ours has a leading axis of layers, each a tensor of its own in theirs."""
        return "{i}" in self.theirs

    @property
    def order(self) -> int:
        """Step through the axes of ours that gives theirs: -1 where transposed."""
        return -1 if self.transposed else 1

    def name(self, layer: int) -> str:
        """Name of the tensor of one layer."""
        return self.theirs.format(i=layer)

    def turned(self, array: np.ndarray) -> np.ndarray:
        """One layer's tensor of theirs as ours, or of ours as theirs."""
        return array.T if self.transposed else array


@dataclass(frozen=True)
class Family:
    """How one `model_type` of Hugging Face maps to a `ModelConfig` and its parameters.

    Attributes:
      model_type: As in config.json.
      architecture: Class that transformers loads.
      rows: Table of all tensors that any model of the family may have.
      defaults: Values of config fields that may be missing, as transformers has them.
      only: Fields whose other values would change the arithmetic in a way not implemented.
      read: Config fields → the fields of AttentionConfig and MLPConfig that the family decides.
      write: The inverse of `read`.
    """

    model_type: str
    architecture: str
    rows: tuple[Row, ...]
    defaults: HfConfig
    only: Mapping[str, tuple[Any, ...]]
    read: Callable[[HfConfig], tuple[dict[str, Any], dict[str, Any]]]
    write: Callable[[ModelConfig], dict[str, Any]]


def _linear(ours: str, theirs: str) -> tuple[Row, Row]:
    return (
        Row(f"layers/{ours}/kernel", f"model.layers.{{i}}.{theirs}.weight", transposed=True),
        Row(f"layers/{ours}/bias", f"model.layers.{{i}}.{theirs}.bias"),
    )


_LLAMA_ROWS = (
    Row("embed/weight", "model.embed_tokens.weight"),
    Row("norm/scale", "model.norm.weight"),
    Row("head/kernel", "lm_head.weight", transposed=True),
    Row("layers/attention_norm/scale", "model.layers.{i}.input_layernorm.weight"),
    Row("layers/mlp_norm/scale", "model.layers.{i}.post_attention_layernorm.weight"),
    *(row for n in "qkvo" for row in _linear(f"attention/{n}", f"self_attn.{n}_proj")),
    *(row for n in ("gate", "up", "down") for row in _linear(f"mlp/{n}", f"mlp.{n}_proj")),
)

_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}

_LLAMA_ONLY = {"hidden_act": ("silu", "swish"), "quantization_config": (None,)}


def _read_llama(hf: HfConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    bias = hf["attention_bias"]
    return {"qkv_bias": bias, "output_bias": bias}, {"bias": hf["mlp_bias"]}


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.attention.qkv_bias, "mlp_bias": config.mlp.bias}


def _read_mistral(hf: HfConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    window = hf["sliding_window"]
    return {"windows": None if window is None else (window,) * hf["num_hidden_layers"]}, {}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    windows = config.attention.windows
    return {"sliding_window": None if windows is None else windows[0]}


def _read_qwen2(hf: HfConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    layers, full = hf["num_hidden_layers"], hf["max_window_layers"]
    types = hf.get("layer_types")
    sliding = (
        [number >= full and window is not None for number in range(layers)]
        if types is None
        else [_is_sliding(layer_type) for layer_type in types]
    )
    if any(sliding) and window is None:
        raise UserError(
            "config.json: layer_types has sliding_attention, but use_sliding_window or "
            "sliding_window is off; set both, or make every layer full_attention"
        )
    windows = tuple(window if slides else None for slides in sliding)
    return {"qkv_bias": True, "windows": windows if any(sliding) else None}, {}


def _is_sliding(layer_type: str) -> bool:
    if layer_type not in ("full_attention", "sliding_attention"):
        raise UserError(f"config.json: layer_types has {layer_type!r}, which is not implemented")
    return layer_type == "sliding_attention"


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    windows = config.attention.windows
    if windows is None:
        return {
            "use_sliding_window": False,
            "layer_types": ["full_attention"] * config.num_layers,
        }
    return {
        "use_sliding_window": True,
        "sliding_window": next(window for window in windows if window is not None),
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in windows
        ],
    }


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            rows=_LLAMA_ROWS,
            defaults={**_LLAMA_DEFAULTS, "attention_bias": False, "mlp_bias": False},
            only=_LLAMA_ONLY,
            read=_read_llama,
            write=_write_llama,
        ),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            rows=_LLAMA_ROWS,
            defaults={**_LLAMA_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
            only={**_LLAMA_ONLY, "layer_types": (None,)},
            read=_read_mistral,
            write=_write_mistral,
        ),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            rows=_LLAMA_ROWS,
            defaults={
                **_LLAMA_DEFAULTS,
                "num_key_value_heads": 32,
                "use_sliding_window": False,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            only=_LLAMA_ONLY,
            read=_read_qwen2,
            write=_write_qwen2,
        ),
    )
}


def family_of(hf_config: HfConfig) -> Family:
    """The family that a config.json names.

    Raises:
      UserError: If it is none of `FAMILIES`.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"config.json: model_type {model_type!r} is not supported"
            f"{nearest(str(model_type), FAMILIES)}. There are {', '.join(FAMILIES)}; another is "
            "added by a table of its tensors in jaxdpo/hub/families.py"
        )
    return FAMILIES[model_type]


def config_from_hf(hf_config: HfConfig) -> ModelConfig:
    """The architecture that a config.json describes.

    Raises:
      UserError: For an unknown family, a missing field, or a value that is not implemented.
    """
    family = family_of(hf_config)
    hf = {**family.defaults, **hf_config}
    for field, allowed in family.only.items():
        if hf.get(field) not in (*allowed, None):
            raise UserError(
                f"config.json: {field} {hf[field]!r} is not implemented for {family.model_type}"
            )
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    for field in (*sizes, "num_attention_heads"):
        if not isinstance(hf.get(field), int) or hf[field] < 1:
            raise UserError(f"config.json: {field} is {hf.get(field)!r}; it must be a number ≥ 1")
    heads = hf["num_attention_heads"]
    attention, mlp = family.read(hf)
    try:
        return ModelConfig(
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            num_layers=hf["num_hidden_layers"],
            attention=AttentionConfig(
                num_heads=heads,
                num_kv_heads=hf.get("num_key_value_heads") or heads,
                head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
                **attention,
            ),
            mlp=MLPConfig(intermediate_size=hf["intermediate_size"], **mlp),
            rope=rope_from_hf(hf),
            norm_eps=hf["rms_norm_eps"],
            tied_head=hf["tie_word_embeddings"],
        )
    except ValueError as error:
        raise UserError(f"config.json: {error}") from error


def config_to_hf(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    """The config.json of a model: the original's, with what `config` says written over it.

    Args:
      config: Architecture.
      original: config.json the model was loaded from, or `{"model_type": ...}` for a new one.

    Raises:
      UserError: If the family cannot express `config`.
    """
    family = family_of(original)
    hf_config = {
        **original,
        "architectures": [family.architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.attention.num_heads,
        "num_key_value_heads": config.attention.num_kv_heads,
        "head_dim": config.attention.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        **rope_to_hf(config.rope),
        **family.write(config),
    }
    if config_from_hf(hf_config) != config:
        raise UserError(f"the {family.model_type} family cannot express this model: {config}")
    return hf_config

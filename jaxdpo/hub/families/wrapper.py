"""Models of text and images, whose text model is one of the families.

The text model is read, trained and written. What belongs to the images is carried through an
export as it is. Text alone gives all three of Qwen's rotary positions (time, height, width) the
same value, so its rotation is the plain one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxdpo.hub.families.family import HfConfig


@dataclass(frozen=True)
class Wrapper:
    """A `model_type` of text and images.

    Attributes:
      model_type: Value of the field in config.json.
      text_types: The text model's own `model_type` ↦ its family; the first where it has none.
      defaults: Values of the text model's fields that may be missing, the same as in transformers.
    """

    model_type: str
    text_types: Mapping[str, str]
    defaults: HfConfig = field(default_factory=dict)


WRAPPERS = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper(
            "gemma3", {"gemma3_text": "gemma3_text"},
            # Gemma 3's config.json leaves out what is the same in all sizes but one.
            defaults={
                "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
                "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
                "head_dim": 256, "rms_norm_eps": 1e-6, "max_position_embeddings": 131072,
                "tie_word_embeddings": True,
            },
        ),
        Wrapper("mistral3", {"mistral": "mistral", "ministral3": "ministral3"}),
        Wrapper("qwen2_5_vl", {"qwen2_5_vl_text": "qwen2", "qwen2_5_vl": "qwen2"}),
        Wrapper("qwen3_vl", {"qwen3_vl_text": "qwen3", "qwen3_vl": "qwen3"}),
    )
}  # fmt: skip

# How the positions of images are shared out among the channels of a head.
_IMAGE_ROPE = ("mrope_section", "mrope_interleaved")


def wrapper_of(hf_config: HfConfig) -> Wrapper | None:
    """Returns the wrapper that a config.json names; None for a text model, or an unknown one."""
    wrapper = WRAPPERS.get(str(hf_config.get("model_type")))
    inner = hf_config.get("text_config")
    if wrapper is None or not isinstance(inner, Mapping):
        return wrapper
    # Another text model inside is another arithmetic.
    return None if _text_family(wrapper, inner) is None else wrapper


def _text_family(wrapper: Wrapper, inner: Mapping[str, Any]) -> str | None:
    return wrapper.text_types.get(inner.get("model_type") or next(iter(wrapper.text_types)))


def text_config(hf_config: HfConfig) -> HfConfig:
    """Returns the config.json of the text model; of a text model, the same."""
    wrapper = wrapper_of(hf_config)
    if wrapper is None:
        return hf_config
    # Qwen2.5-VL's first files have the fields of the text model beside vision_config.
    inner = dict(hf_config.get("text_config") or hf_config)
    inner.pop("vision_config", None)
    if "tie_word_embeddings" in hf_config:
        # That of the whole model decides, as in transformers.
        inner["tie_word_embeddings"] = hf_config["tie_word_embeddings"]
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(inner.get(name), Mapping):
            inner[name] = _text_rope(inner[name])
    return {**wrapper.defaults, **inner, "model_type": _text_family(wrapper, inner)}


def _text_rope(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    plain = {name: value for name, value in rope.items() if name not in _IMAGE_ROPE}
    for name in ("type", "rope_type"):
        if plain.get(name) == "mrope":
            plain[name] = "default"
    return plain or None

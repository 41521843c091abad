"""The model families: the names of their tensors and the fields of their config.json, both ways.

A family is a difference from Llama: a table of rows `path ↔ Hugging Face name`, read forwards to
load and backwards to save, and two functions that convert between config.json and `ModelConfig`. To
add one, append a `Family` to `FAMILIES`; the tests of the hub run over all of them.
"""

from typing import Any

from jaxdpo.errors import UserError, nearest
from jaxdpo.hub.families.family import Family, HfConfig
from jaxdpo.hub.families.gemma import GEMMA_FAMILIES
from jaxdpo.hub.families.gpt2 import GPT2
from jaxdpo.hub.families.granite import GRANITE_FAMILIES
from jaxdpo.hub.families.interleaved import INTERLEAVED_FAMILIES
from jaxdpo.hub.families.llama import LLAMA_FAMILIES
from jaxdpo.hub.families.ministral import MINISTRAL3
from jaxdpo.hub.families.moe import MOE_FAMILIES
from jaxdpo.hub.families.nemotron import NEMOTRON
from jaxdpo.hub.families.olmo import OLMO_FAMILIES
from jaxdpo.hub.families.row import Row, Span
from jaxdpo.hub.families.wrapper import WRAPPERS, text_config, wrapper_of
from jaxdpo.model.config import ModelConfig

__all__ = [
    "FAMILIES",
    "WRAPPERS",
    "Family",
    "Row",
    "Span",
    "config_from_hf",
    "config_to_hf",
    "family_of",
    "text_config",
    "wrapper_of",
]

FAMILIES = {
    family.model_type: family
    for family in (
        *LLAMA_FAMILIES,
        MINISTRAL3,
        *GEMMA_FAMILIES,
        *OLMO_FAMILIES,
        *GRANITE_FAMILIES,
        *INTERLEAVED_FAMILIES,
        NEMOTRON,
        GPT2,
        *MOE_FAMILIES,
    )
}

# Larger than any model, and small enough that a hostile config.json cannot make the loader allocate
# memory before the tensors of the files are compared with it.
_LARGEST, _MOST_LAYERS = 2**31, 10_000
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def family_of(hf_config: HfConfig) -> Family:
    """Returns the family that a config.json names; of text and images, that of the text model.

    Raises:
      UserError: If it is none of `FAMILIES`, nor one of `WRAPPERS`.
    """
    if wrapper_of(hf_config) is not None:
        return FAMILIES[text_config(hf_config)["model_type"]]
    model_type = hf_config.get("model_type")
    inner = hf_config.get("text_config")
    if model_type not in FAMILIES and isinstance(inner, dict):
        raise UserError(
            f"config.json: {model_type!r} holds a text model, {inner.get('model_type')}, among "
            f"others; only a text model saved by itself can be loaded, or one within "
            f"{', '.join(WRAPPERS)}"
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"config.json: model_type {model_type!r} is not supported"
            f"{nearest(str(model_type), FAMILIES)}. There are {', '.join(FAMILIES)}; another is "
            "added by a table of its tensors in jaxdpo/hub/families"
        )
    return FAMILIES[model_type]


def config_from_hf(hf_config: HfConfig, context: int | None = None) -> ModelConfig:
    """Reads the architecture that a config.json describes.

    Args:
      hf_config: The config.json.
      context: Longest sequence there will be, in tokens. The rotary embeddings "dynamic" and
        "longrope" are those for sequences of that length, whatever a sequence's own length; None
        for the length the model was first trained with.

    Raises:
      UserError: For an unknown family, a missing field, or a value that is not implemented.
    """
    family = family_of(hf_config)
    hf = {**family.defaults, **text_config(hf_config)}
    # A family's own names (GPT-2's n_embd) are read under Llama's names too.
    hf |= {llama: hf[own] for llama, own in family.names.items() if own in hf}
    for field, allowed in family.only.items():
        if hf.get(field) not in (*allowed, None):
            raise UserError(
                f"config.json: {field} {hf[field]!r} is not implemented for {family.model_type}"
            )
    # Checked here and not in the families, so that no division or range() of theirs meets a string,
    # a zero or a billion layers.
    # GPT-2 may leave its own name of the last one out.
    sizes = _SIZES if "intermediate_size" in family.names else (*_SIZES, "intermediate_size")
    for field in sizes:
        most = _MOST_LAYERS if field == "num_hidden_layers" else _LARGEST
        value, name = hf.get(field), family.names.get(field, field)
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(
                f"config.json: {name} is {value!r}; it must be a number from 1 to {most}"
            )
    try:
        return ModelConfig.model_validate(family.read(hf, context))
    # A family's reader takes what it needs without asking; what it trips over is the file's fault.
    except KeyError as error:
        raise UserError(f"config.json: {error.args[0]} is missing") from error
    except ValueError as error:
        raise UserError(f"config.json: {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"config.json: a field has a value of the wrong kind ({error})") from error


def config_to_hf(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    """Writes the config.json of a model: the original's, updated with what `config` says.

    Args:
      config: Architecture.
      original: config.json the model was loaded from, or `{"model_type": ...}` for a new one.

    Raises:
      UserError: If the family cannot express `config`.
    """
    family = family_of(original)
    # Code of its own, which is not run here, does not go along.
    hf_config = {name: value for name, value in original.items() if name != "auto_map"}
    # A text model within another keeps its architecture, and so the file says it as it came.
    if wrapper_of(original) is None:
        hf_config |= {"architectures": [family.architecture], **family.write(config, original)}
    # What was written must be read as the same model. The comparison catches a family that has no
    # field for something that `config` says, such as a bias of Mistral.
    context = max((getattr(r.scaling, "length", 0) for r in config.attention.ropes), default=0)
    if config_from_hf(hf_config, context or None) != config:
        raise UserError(f"the {family.model_type} family cannot express this model: {config}")
    return hf_config

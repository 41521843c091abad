"""Ministral 3: a Mistral whose queries grow with their position."""

from typing import Any

from jaxdpo.hub.families.family import (
    LLAMA_DEFAULTS,
    LLAMA_ONLY,
    Family,
    Fields,
    HfConfig,
    llama_rows,
    merged,
)
from jaxdpo.hub.families.llama import read_mistral, write_mistral
from jaxdpo.hub.rope import both_spellings, joined_fields
from jaxdpo.model.config import ModelConfig

# What transformers takes where config.json has no rotary embedding.
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
# For these transformers puts the field of the whole config in the place of the embedding's own.
_OVERRIDDEN = ("yarn", "llama3", "longrope")


def _plain(hf: HfConfig) -> dict[str, Any]:
    """Returns config.json with a rotary embedding without what Ministral adds to its fields."""
    fields = joined_fields(hf)
    for name in ("llama_4_scaling_beta", "max_position_embeddings"):
        fields.pop(name, None)
    return {**hf, "rope_parameters": fields, "rope_scaling": None, "rope_theta": None}


def _read_ministral3(hf: HfConfig, context: int | None) -> Fields:
    if not hf.get("rope_parameters") and not hf.get("rope_scaling"):
        hf = {**hf, "rope_parameters": _ROPE, "rope_theta": None}
    rope = joined_fields(hf)
    length = None
    if rope.get("rope_type", "default") in _OVERRIDDEN:
        length = hf.get("original_max_position_embeddings")
        rope.setdefault("original_max_position_embeddings", hf.get("max_position_embeddings"))
    scaling = {
        "beta": rope["llama_4_scaling_beta"],
        "length": length or rope["original_max_position_embeddings"],
    }
    fields = read_mistral(_plain(hf), context)
    return merged(fields, {"attention": {"query_scaling": scaling}})


def _write_ministral3(config: ModelConfig, original: HfConfig) -> dict[str, Any]:
    written = write_mistral(config, _plain(original))
    scaling = config.attention.query_scaling
    if scaling is None:
        # Read back, this is an error that names the family.
        return written
    added = {
        "llama_4_scaling_beta": scaling.beta,
        "original_max_position_embeddings": scaling.length,
    }
    kept = {
        name: value
        for name, value in joined_fields(original).items()
        if name == "max_position_embeddings"
    }
    return {**written, **both_spellings({**written["rope_parameters"], **kept, **added})}


MINISTRAL3 = Family(
    "ministral3", "Ministral3ForCausalLM", llama_rows, _read_ministral3, _write_ministral3,
    defaults={
        **LLAMA_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": None,
    },
    only=LLAMA_ONLY,
)  # fmt: skip

"""Rotary embeddings in config.json, in both of their spellings.

transformers 5 writes `rope_parameters`; earlier versions read `rope_theta` and `rope_scaling`, and
silently take θ = 10000 without them. Both spellings are read, and both are written.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.model.config import AttentionConfig
from jaxdpo.model.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeConfig,
    Scaling,
    YarnScaling,
)

_log = logging.getLogger(__name__)

HfConfig = Mapping[str, Any]

# The fields of each kind of scaling in config.json: needed, optional.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor",),
        ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
    ),
    "longrope": (("short_factor", "long_factor"), ("factor", "attention_factor")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
}
# Fields of older long-context files that no version of transformers reads: the code of YaRN's
# authors, which came with those models, did. A field that is neither here nor above is refused: it
# may change the arithmetic.
_UNREAD = {"attn_factor", "finetuned", "extrapolation_factor"}


def rope_from_hf(
    hf_config: HfConfig,
    context: int | None = None,
    theta: float = 10000.0,
    partial: float | None = None,
) -> RopeConfig:
    """Reads the rotary embedding that a config.json describes.

    Args:
      hf_config: config.json.
      context: Longest sequence that it is for, in tokens, for the kinds that depend on it.
      theta: The family's default.
      partial: Share of each head that the family rotates by default; None if it rotates whole heads
        and has no field for it.

    Raises:
      UserError: For a kind that is not implemented, a missing or unknown field, or spellings that
        disagree.
    """
    fields = joined_fields(hf_config)
    fields.setdefault("partial_rotary_factor", 1.0 if partial is None else partial)
    rope = _rope(fields, hf_config, context, theta)
    if rope.partial != 1.0 and partial is None:
        raise UserError(
            "config.json: partial_rotary_factor other than 1 is not implemented for this family"
        )
    return rope


def _rope(fields: HfConfig, hf_config: HfConfig, context: int | None, theta: float) -> RopeConfig:
    fields = dict(fields)
    kind = fields.pop("rope_type", "default")
    theta = fields.pop("rope_theta", theta)
    partial = fields.pop("partial_rotary_factor", 1.0)
    if kind == "default":
        return RopeConfig(theta=theta, partial=partial)
    if kind not in _KINDS:
        raise UserError(
            f"config.json: rope_type {kind!r} is not implemented; "
            f"there are default, {', '.join(_KINDS)}"
        )
    needed, optional = _KINDS[kind]
    missing = [name for name in needed if fields.get(name) is None]
    if missing:
        raise UserError(f"config.json: rope_type {kind!r} needs {', '.join(missing)}")
    unknown = fields.keys() - {*needed, *optional, *_UNREAD, "original_max_position_embeddings"}
    if unknown:
        raise UserError(
            f"config.json: rope_type {kind!r} has {', '.join(sorted(unknown))}, which is not "
            "implemented"
        )
    longest = hf_config.get("max_position_embeddings")
    # A field of the whole config overrides that of the rotary embedding, as in transformers.
    original = (
        hf_config.get("original_max_position_embeddings")
        or fields.get("original_max_position_embeddings")
        or longest
    )
    # "dynamic" stretches the frequencies for sequences beyond max_position_embeddings; transformers
    # never reads an original length for it.
    if kind == "dynamic":
        original = longest
    if kind != "linear" and not original:
        raise UserError(f"config.json: rope_type {kind!r} needs max_position_embeddings")
    scaling = _scaling(kind, fields, original or 0, longest or original or 0, context)
    return RopeConfig(theta=theta, partial=partial, scaling=scaling)


def _scaling(
    kind: str, fields: HfConfig, original: int, longest: int, context: int | None
) -> Scaling:
    factor = fields.get("factor")
    # transformers stretches by the length of the sequence at hand, so one pair's log-probs would
    # depend on what it is batched with. Here one length, that of the run, serves all sequences.
    length = max(context or 0, original)
    if kind == "linear":
        return LinearScaling(factor=fields["factor"])
    if kind == "dynamic":
        return DynamicScaling(
            factor=fields["factor"], original_max_positions=original, length=length
        )
    if kind == "yarn":
        return YarnScaling(
            factor=fields["factor"],
            original_max_positions=original,
            beta_fast=fields.get("beta_fast") or 32,
            beta_slow=fields.get("beta_slow") or 1,
            truncate=fields.get("truncate", True),
            magnitude=_yarn_magnitude(fields),
        )
    if kind == "longrope":
        # LongRoPE (https://arxiv.org/abs/2402.13753) scales cos and sin with the ratio of the
        # extended to the original context.
        extended = factor or longest / original
        grown = math.sqrt(1 + math.log(extended) / math.log(original)) if extended > 1 else 1.0
        return LongScaling(
            short_factors=tuple(fields["short_factor"]),
            long_factors=tuple(fields["long_factor"]),
            original_max_positions=original,
            length=length,
            magnitude=fields.get("attention_factor") or grown,
        )
    return Llama3Scaling(
        factor=fields["factor"],
        low_freq_factor=fields["low_freq_factor"],
        high_freq_factor=fields["high_freq_factor"],
        original_max_positions=original,
    )


def _yarn_magnitude(fields: HfConfig) -> float:
    # YaRN (https://arxiv.org/abs/2309.00071) scales cos and sin, and so the attention's logits, by
    # 0.1 ln(factor) + 1, equation 22. DeepSeek's two weights give the ratio of two such terms.
    if fields.get("attention_factor") is not None:
        return fields["attention_factor"]

    def grown(weight: float) -> float:
        factor = fields["factor"]
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if fields.get("mscale") and fields.get("mscale_all_dim"):
        return grown(fields["mscale"]) / grown(fields["mscale_all_dim"])
    return grown(1.0)


def joined_fields(hf_config: HfConfig) -> dict[str, Any]:
    """Returns the rotary embedding's fields from both spellings.

    Raises:
      UserError: If they disagree.
    """
    # A folder that went through several versions of transformers holds both spellings. If they
    # disagree, each version would rotate differently, so neither is guessed to be the right one.
    # But θ: transformers 5, which writes rope_parameters, leaves an older θ beside it that nothing
    # of its own reads.
    new = dict(hf_config.get("rope_parameters") or {})
    old = dict(hf_config.get("rope_scaling") or {})
    for field in ("rope_theta", "partial_rotary_factor"):
        if hf_config.get(field) is not None:
            old.setdefault(field, hf_config[field])
    for spelling in (new, old):
        if "type" in spelling:
            spelling.setdefault("rope_type", spelling["type"])
            del spelling["type"]
    for field in new.keys() & old.keys():
        if new[field] != old[field]:
            if field == "rope_theta" and isinstance(old[field], int | float):
                _log.warning(
                    "config.json: rope_theta %s in rope_parameters is read, as in transformers 5, "
                    "and not %s beside it",
                    new[field],
                    old[field],
                )
                continue
            raise UserError(
                f"config.json: {field} is {new[field]} in rope_parameters but {old[field]} in the "
                "older spelling (rope_theta, rope_scaling); remove the one that is wrong"
            )
    return {**old, **new}


def rope_to_hf(rope: RopeConfig, original: HfConfig) -> dict[str, Any]:
    """Writes the fields of config.json, in both spellings.

    The original's own fields are kept if they describe this embedding.
    """
    fields = _fields(rope, original)
    longest = {}
    # For "dynamic" this field is where the stretching begins, so it belongs to the embedding.
    if isinstance(rope.scaling, DynamicScaling):
        longest = {"max_position_embeddings": rope.scaling.original_max_positions}
    return (
        longest
        | both_spellings(fields)
        | {
            name: fields[name]
            for name in ("partial_rotary_factor",)
            if fields.get(name, 1.0) != 1.0
        }
    )


def both_spellings(fields: HfConfig) -> dict[str, Any]:
    """Returns the fields of config.json that say the same to all versions of transformers."""
    scaling = {name: value for name, value in fields.items() if name not in _OUTSIDE}
    return {
        "rope_parameters": dict(fields),
        "rope_theta": fields["rope_theta"],
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
    }


# Fields that older configs keep beside rope_scaling and not in it.
_OUTSIDE = ("rope_theta", "partial_rotary_factor")


def _fields(rope: RopeConfig, original: HfConfig) -> dict[str, Any]:
    length = getattr(rope.scaling, "length", None)
    try:
        fields = {"rope_type": "default", "rope_theta": rope.theta, **joined_fields(original)}
        # The original's spelling is kept where it means the same: it may hold fields that older
        # versions of transformers insist on.
        if _rope(fields, original, length, rope.theta) == rope:
            return fields
    except UserError:
        pass
    partial = {} if rope.partial == 1.0 else {"partial_rotary_factor": rope.partial}
    return {**_written_scaling(rope.scaling), "rope_theta": rope.theta, **partial}


def _written_scaling(scaling: Scaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    fields = scaling.model_dump()
    names = {
        "kind": "rope_type",
        "original_max_positions": "original_max_position_embeddings",
        "short_factors": "short_factor",
        "long_factors": "long_factor",
        "magnitude": "attention_factor",
    }
    # The length is a choice of the run (data.max_length), not a property of the model.
    fields.pop("length", None)
    return {
        names.get(name, name): list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }


def layer_ropes_from_hf(
    hf_config: HfConfig, thetas: Mapping[str, float], context: int | None, local: str
) -> dict[str, RopeConfig]:
    """Reads the rotary embeddings of "full_attention" and "sliding_attention" layers.

    Args:
      hf_config: config.json.
      thetas: The family's default for each type of layer.
      context: As for `rope_from_hf`.
      local: Field that holds the sliding layers' θ in the older spelling, in which only full layers
        are scaled.

    Raises:
      UserError: For what `rope_from_hf` refuses.
    """
    full, sliding = _by_type(hf_config, local)
    return {
        "full_attention": _rope(full, hf_config, context, thetas["full_attention"]),
        "sliding_attention": _rope(sliding, hf_config, context, thetas["sliding_attention"]),
    }


def _by_type(hf_config: HfConfig, local: str) -> tuple[dict[str, Any], dict[str, Any]]:
    parameters = hf_config.get("rope_parameters") or {}
    old = {name: hf_config.get(name) for name in ("rope_theta", "rope_scaling")}
    old_local = {"rope_theta": hf_config.get(local)}
    return (
        joined_fields({"rope_parameters": parameters.get("full_attention"), **old}),
        joined_fields({"rope_parameters": parameters.get("sliding_attention"), **old_local}),
    )


def layer_ropes_to_hf(
    attention: AttentionConfig, original: HfConfig, thetas: Mapping[str, float], local: str
) -> dict[str, Any]:
    """Writes the fields that `layer_ropes_from_hf` reads, in both spellings.

    Args:
      attention: The attention, with a rotary embedding for each layer.
      original: config.json that the model came with.
      thetas: The family's default for each type of layer.
      local: Field that holds the sliding layers' θ in the older spelling.
    """
    windows = attention.windows or (None,) * len(attention.layer_ropes or ())
    ropes: dict[str, RopeConfig] = {}
    for window, rope in zip(windows, attention.layer_ropes or (), strict=True):
        ropes.setdefault(
            "full_attention" if window is None else "sliding_attention", rope or RopeConfig()
        )
    # Each type of layer keeps its own fields of the original; the older spelling is taken out of
    # the original first, because it says nothing about one of the types.
    kept = dict(
        zip(("full_attention", "sliding_attention"), _by_type(original, local), strict=True)
    )
    parameters = {
        name: _fields(
            ropes.get(name, RopeConfig(theta=thetas[name])),
            {**original, "rope_parameters": kept[name], "rope_theta": None, "rope_scaling": None},
        )
        for name in kept
    }
    # An older reader takes the full layers' embedding for that of the whole config.
    return {
        local: parameters["sliding_attention"]["rope_theta"],
        **both_spellings(parameters["full_attention"]),
        "rope_parameters": parameters,
    }

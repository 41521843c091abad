"""Rotary embedding in config.json, in both of its spellings.

transformers 5 writes `rope_parameters`; earlier versions read `rope_theta` and `rope_scaling`, and
without them silently take θ = 10000. Both are read, and both are written.
"""

from collections.abc import Mapping
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.model.rope import LinearScaling, Llama3Scaling, RopeConfig

_DEFAULT_THETA = 10000.0
# Our field → theirs, of each kind of scaling.
_LINEAR = {"factor": "factor"}
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}
_SCALINGS = {"linear": (LinearScaling, _LINEAR), "llama3": (Llama3Scaling, _LLAMA3)}


def rope_from_hf(hf_config: Mapping[str, Any]) -> RopeConfig:
    """The rotary embedding that a config.json describes.

    Raises:
      UserError: For a kind that is not implemented, a missing field, or spellings that disagree.
    """
    fields = _joined(hf_config)
    kind = fields.pop("rope_type", "default")
    theta = fields.pop("rope_theta", _DEFAULT_THETA)
    if fields.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config.json: partial_rotary_factor other than 1 is not implemented")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in _SCALINGS:
        raise UserError(
            f"config.json: rope_type {kind!r} is not implemented; "
            f"there are default, {', '.join(_SCALINGS)}"
        )
    scaling, names = _SCALINGS[kind]
    if kind == "llama3" and "original_max_position_embeddings" not in fields:
        fields["original_max_position_embeddings"] = hf_config.get("max_position_embeddings")
    missing = [name for name in names.values() if fields.get(name) is None]
    if missing:
        raise UserError(f"config.json: rope_type {kind!r} needs {', '.join(missing)}")
    values = {ours: fields[theirs] for ours, theirs in names.items()}
    return RopeConfig(theta=theta, scaling=scaling(**values))


def _joined(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both spellings, where they agree."""
    new = dict(hf_config.get("rope_parameters") or {})
    old = dict(hf_config.get("rope_scaling") or {})
    for field in ("rope_theta", "partial_rotary_factor"):
        if hf_config.get(field) is not None:
            old.setdefault(field, hf_config[field])
    for spelling in (new, old):
        if "type" in spelling:
            spelling.setdefault("rope_type", spelling.pop("type"))
    for field in new.keys() & old.keys():
        if new[field] != old[field]:
            raise UserError(
                f"config.json: {field} is {new[field]} in rope_parameters but {old[field]} in the "
                "older spelling (rope_theta, rope_scaling); remove the one that is wrong"
            )
    return {**old, **new}


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """The fields of config.json, in both spellings."""
    scaling = None
    if rope.scaling is not None:
        _, names = _SCALINGS[rope.scaling.kind]
        values = {theirs: getattr(rope.scaling, ours) for ours, theirs in names.items()}
        scaling = {"rope_type": rope.scaling.kind, **values}
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": rope.theta}
    return {"rope_parameters": parameters, "rope_theta": rope.theta, "rope_scaling": scaling}

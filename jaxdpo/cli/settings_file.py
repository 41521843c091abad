"""Writes a settings file to begin with: every field, its meaning and its default."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxdpo.cli.fields import section_of

_WIDTH = 100  # columns


def settings_file(model: type[BaseModel], given: Mapping[str, Any]) -> str:
    """Returns the text of a YAML file in which only what is given, or must be, is no comment.

    >>> print(settings_file(RunConfig, {"model.path": "models/sft"}))  # doctest: +SKIP
    # the model
    model:
      # Hugging Face folder, or org/name on the Hub
      path: models/sft
      …

    Args:
      model: The configuration.
      given: Values by dotted keys.
    """
    lines: list[str] = []
    for name, field in model.model_fields.items():
        lines += ["", *_entry(name, field, None, given, 0)]
    return "\n".join(lines).strip() + "\n"


def _entry(
    key: str, field: FieldInfo, defaults: Any, given: Mapping[str, Any], depth: int
) -> list[str]:
    """Returns the lines of a field, or of a section with all of its fields."""
    name, indent = key.rpartition(".")[2], "  " * depth
    about = textwrap.wrap(field.description or name, _WIDTH - len(indent) - 2)
    head = [f"{indent}# {line}" for line in about]
    value = _default(field, defaults, name)
    section = section_of(field.annotation)
    if section is None:
        if key in given:
            return [*head, f"{indent}{name}: {_yaml(given[key])}"]
        if value is None and field.is_required():
            return [*head, f"{indent}{name}: # required"]
        return [*head, f"{indent}# {name}: {_yaml(value)}"]
    inner: list[str] = []
    for each, its_field in section.model_fields.items():
        inner += _entry(f"{key}.{each}", its_field, value, given, depth + 1)
    # A section's name above nothing but comments would be a section that is null.
    empty = all(line.lstrip().startswith("#") for line in inner)
    return [*head, f"{indent}{'# ' if empty else ''}{name}:", *inner]


def _default(field: FieldInfo, defaults: Any, name: str) -> Any:
    """Returns what the field is if the user sets nothing; None where that is nothing."""
    if isinstance(defaults, BaseModel):
        return getattr(defaults, name)
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    plain = list(value) if isinstance(value, tuple) else value
    # One line whatever its length, so that one mark turns it into a setting or a comment.
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.split("\n")[0]

"""Writes the help of a command: every field with its type, choices, default and a line of text."""

import typing
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxdpo.cli.fields import describe_type, section_of
from jaxdpo.cli.wrapping import wrapped


def fields_help(model: type[BaseModel]) -> str:
    """Returns the help of all fields of a configuration, section by section.

    loss: the objective
      loss.beta=0.1  (number > 0)
          strength of the pull to the reference model
    """
    # A command's own fields come before the sections, which are long and mostly those of a run.
    lines: list[str] = []
    sections = {}
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            lines += _field(name, field, None, 1)
        else:
            sections[name] = (field, section)
    for name, (field, section) in sections.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        absent = "" if field.is_required() or default is not None else "; default: null, without it"
        lines += wrapped(f"{name}: {field.description}{absent}", 0)
        lines += _fields(section, f"{name}.", default, 1)
    return "\n".join(lines)


def _fields(section: type[BaseModel], prefix: str, given: Any, depth: int) -> list[str]:
    """Returns the lines of a section's fields; `given` is the section where the user sets none."""
    lines = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None:
            lines += _field(prefix + name, field, given, depth)
        else:
            # A section within a section may be absent as a whole: it has a line of its own.
            lines += _field(prefix + name, field, given, depth)
            lines += _fields(inner, f"{prefix}{name}.", getattr(given, name, None), depth)
    return lines


def _field(key: str, field: FieldInfo, given: Any, depth: int) -> list[str]:
    name = key.rpartition(".")[2]
    # Of a list of configurations, the type would be all their fields; they are listed below it.
    kind = describe_type(field)
    alternatives = _alternatives(field.annotation)
    if alternatives:
        kind = "one of those below, or a list of them"
    if given is None and field.is_required():
        head = f"{key}=…  ({kind}; required)"
    else:
        value = (
            getattr(given, name)
            if given is not None
            else field.get_default(call_default_factory=True)
        )
        head = f"{key}={_shown(value)}  ({kind})"
    lines = wrapped(head, depth, hanging=2)
    if field.description:
        lines += wrapped(field.description, depth + 2)
    for alternative in alternatives:
        lines += _alternative(alternative, depth + 2)
    return lines


def _alternative(model: type[BaseModel], depth: int) -> list[str]:
    """Returns the lines of one of several configurations that a list may hold, as criteria."""
    said = (model.__doc__ or "").strip().split("\n")[0]
    lines = wrapped(f"- {said}", depth, hanging=1)
    # What makes it this one, its name, comes before the label that all of them may have.
    fields = sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        section = section_of(field.annotation)
        if section is None:
            lines += _field(name, field, None, depth + 1)
        else:
            lines += _fields(section, f"{name}.", None, depth + 1)
    return lines


def _alternatives(annotation: Any) -> list[type[BaseModel]]:
    """Returns the configurations that a field holds a list of."""
    if typing.get_origin(annotation) is not tuple:
        return []
    inner = typing.get_args(annotation)[0]
    options = typing.get_args(inner) or (inner,)
    return [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    # In YAML, as it would be written; a document's end ("...") may follow on a second line.
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True).split("\n")[0]

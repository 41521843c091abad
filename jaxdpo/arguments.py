"""`field=value` and `section.field=value` arguments → a configuration, and the help about it."""

import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from jaxdpo.errors import UserError, nearest

_Config = TypeVar("_Config", bound=BaseModel)


def read_arguments(
    config: type[_Config], arguments: Sequence[str], default_field: dict[str, str] | None = None
) -> _Config:
    """The configuration that arguments give, values in YAML.

    Args:
      config: Its class; a field that is a configuration itself is a section.
      arguments: `field=value` or `section.field=value` each.
      default_field: Section ↦ the field that `section=value` sets.

    Raises:
      UserError: For an unknown field (naming the nearest), or a value that a field can't have.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r}: an argument has the form field=value; see --help")
        if name in (default_field or {}):
            name = f"{name}.{(default_field or {})[name]}"
        _check_known(name, field_names(config))
        try:
            # A path of what comes with the package begins with what YAML reserves.
            value = text if text.startswith("@") else yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{argument!r}: the value is not valid YAML; quote it") from None
        section, dot, field = name.partition(".")
        if dot:
            values.setdefault(section, {})[field] = value
        else:
            values[section] = value
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_describe(problem) for problem in error.errors())) from None


def field_names(config: type[BaseModel]) -> list[str]:
    """What can be set: `field`, or `section.field`."""
    names: list[str] = []
    for name, field in config.model_fields.items():
        inner = _section(field.annotation)
        names += [f"{name}.{each}" for each in inner.model_fields] if inner else [name]
    return names


def describe_fields(config: type[BaseModel]) -> str:
    """Every field, its default, and a line of what it does."""
    lines = []
    for name, field in config.model_fields.items():
        inner = _section(field.annotation)
        named = (
            {f"{name}.{each}": f for each, f in inner.model_fields.items()}
            if inner
            else {name: field}
        )
        for each, f in named.items():
            default = "…" if f.is_required() else _shown(f.get_default(call_default_factory=True))
            lines.append(f"  {each}={default}\n      {f.description}")
    return "\n".join(lines)


def _check_known(name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise UserError(
            f"{name}: unknown field{nearest(name, known)}; there are {', '.join(known)}"
        )


def _section(annotation: Any) -> type[BaseModel] | None:
    """The configuration class of a section, of `Section | None` too; None of a plain field."""
    for option in typing.get_args(annotation) or (annotation,):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _shown(value: Any) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value).split("\n")[0]


def _describe(problem: Any) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{name}: must be given; set {name}=…"
    if problem["type"] == "value_error":
        return f"{name}{': ' if name else ''}{problem['ctx']['error']}"
    return f"{name}: {problem['msg']}; it is {problem['input']!r}"

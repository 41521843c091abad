"""From a YAML file and `section.field=value` arguments to a checked configuration of any kind."""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jaxdpo.errors import UserError, nearest

Config = TypeVar("Config", bound=BaseModel)


def load_settings(
    model: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Reads a YAML file, if any, and applies `section.field=value` overrides, values in YAML too.

    Raises:
      UserError: For a missing or malformed file, an unknown key (naming the nearest known one) or a
        value out of its range.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(values, override)
    return checked(model, values, f"{path}: " if path is not None else "")


def checked(model: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """The configuration that values make.

    Args:
      model: Its kind.
      values: By section and field.
      where: What each message begins with.

    Raises:
      UserError: As for `load_settings`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_describe(model, problem) for problem in error.errors()]
        raise UserError("\n".join(f"{where}{problem}" for problem in problems)) from None


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """A command line's configuration file, if any, and its overrides.

    Raises:
      UserError: For an option, or more than one file.
    """
    overrides = [argument for argument in arguments if "=" in argument]
    paths = [argument for argument in arguments if "=" not in argument]
    options = [argument for argument in arguments if argument.startswith("-")]
    if options:
        raise UserError(f"{options[0]}: fields are set as section.field=value, without dashes")
    if len(paths) > 1:
        raise UserError(f"one configuration file at a time, not {' and '.join(paths)}")
    return (paths[0] if paths else None), overrides


def fields_text(model: type[BaseModel], section: str = "", given: Any = None) -> str:
    """The fields of one configuration, each with its default and a line of what it does.

    Args:
      model: The kind of configuration.
      section: What each field's name begins with.
      given: The section where none is set, if its values are not the fields' own defaults.
    """
    return "\n".join(
        _field_text(section + name, field, getattr(given, name, None))
        for name, field in model.model_fields.items()
    )


def sections_text(model: type[BaseModel]) -> str:
    """The fields of a configuration, and of those that are its sections."""
    lines = []
    for name, field in model.model_fields.items():
        inner = section_type(field.annotation)
        section = issubclass(inner, BaseModel)
        given = None if field.is_required() else field.get_default(call_default_factory=True)
        lines.append(fields_text(inner, f"{name}.", given) if section else _field_text(name, field))
    return "\n".join(lines)


def _field_text(name: str, field: FieldInfo, given: Any = None) -> str:
    default = "required"
    if given is not None or not field.is_required():
        value = field.get_default(call_default_factory=True) if given is None else given
        plain = list(value) if isinstance(value, tuple) else value
        default = yaml.safe_dump(plain, default_flow_style=True).split("\n")[0]
    return f"  {name}={default}\n      {field.description}"


def section_type(annotation: Any) -> type[Any]:
    """The class of an annotation: of `LoraConfig | None`, LoraConfig."""
    options = typing.get_args(annotation) or (annotation,)
    return next((option for option in options if isinstance(option, type)), object)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error and not the last one's value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file; a key that stands twice is an error.

    Raises:
      UserError: If it is missing, or anything else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections such as 'model:', holds {values!r}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: an override has the form section.field=value")
    try:
        value = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML; quote it") from None
    *sections, field = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[field] = value


def _describe(config: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(config, location[:-1])
        return (
            f"{name}: unknown key{nearest(location[-1], known)}; "
            f"{'.'.join(location[:-1]) or 'the configuration'} has {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return f"{name}: must be given; set {name}=… on the command line or in the YAML file"
    if problem["type"] == "value_error":
        # Said by a section's own check, which names fields and values.
        return f"{name}{': ' if name else ''}{problem['ctx']['error']}"
    return f"{name}: {problem['msg']}; it is {problem['input']!r}"


def _fields_at(config: type[BaseModel], location: Sequence[str]) -> list[str]:
    for name in location:
        if name not in config.model_fields:
            return []
        config = section_type(config.model_fields[name].annotation)
    return list(config.model_fields)

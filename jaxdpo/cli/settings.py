"""Makes a checked configuration of any kind from a YAML file and `section.field=value` overrides.

config = load_settings(RunConfig, "dpo.yaml", ["loss.beta=0.2", "model=runs/sft/model"])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from jaxdpo.cli.fields import (
    PATHS,
    accepts_text,
    find_key,
    leaves,
    only_text,
    other_names,
    section_of,
    suggestion,
)
from jaxdpo.cli.yaml_values import InvalidYaml, load_yaml
from jaxdpo.errors import UserError, nearest
from jaxdpo.storage.files import shipped
from jaxdpo.storage.urls import refuse_urls_in

Config = TypeVar("Config", bound=BaseModel)


@dataclass
class _Values:
    """Nested values on their way to a configuration.

    Attributes:
      tree: By section and field.
      unread: Where a value stands that YAML could not read, and that was taken as text.
    """

    tree: dict[str, Any]
    unread: set[tuple[str, ...]] = field(default_factory=set)


def load_settings(
    model: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Reads a YAML file, if any, and applies `section.field=value` overrides, values in YAML too.

    Args:
      model: The kind of configuration.
      path: The YAML file; `@configs/lora.yaml` is one that comes with the package.
      overrides: As `key=value`; a value that YAML cannot read is taken as text.

    Raises:
      UserError: For a missing or malformed file, an unknown key (naming the nearest known one) or a
        value out of its range.
    """
    # The overrides come last, so that a command line can change what its file says.
    values = _Values(read_yaml(Path(shipped(str(path)))) if path is not None else {})
    values.tree = _without_blanks(model, _adopted(model, values.tree))
    for override in overrides:
        _apply(model, values, override)
    return _checked(model, values, f"{path}: " if path is not None else "")


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Returns the configuration with some fields changed.

    Args:
      config: The configuration. What it leaves to defaults is decided anew.
      overrides: As `key=value`, values in YAML.

    Raises:
      UserError: For an unknown key, or for values that do not go together.
    """
    values = _Values(config.model_dump(exclude_unset=True))
    for override in overrides:
        _apply(type(config), values, override)
    return _checked(type(config), values, "")


def given_values(model: type[BaseModel], overrides: Sequence[str]) -> dict[str, Any]:
    """Reads overrides alone and returns their values by dotted keys; no field need be given.

    Raises:
      UserError: For an unknown key or a value out of its range.
    """
    values = _Values({})
    for override in overrides:
        _apply(model, values, override)
    try:
        model.model_validate(values.tree)
    except ValidationError as error:
        problems = [each for each in error.errors() if each["type"] != "missing"]
        if problems:
            said = dict.fromkeys(_describe(model, each, values.unread) for each in problems)
            raise UserError("\n".join(said)) from None
    return dict(_flattened(model, values.tree, ""))


def _flattened(
    model: type[BaseModel], tree: dict[str, Any], prefix: str
) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        section = section_of(model.model_fields[name].annotation)
        if section is not None and isinstance(value, dict):
            yield from _flattened(section, value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def checked(model: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """Returns the configuration that values make.

    Args:
      model: The kind of configuration.
      values: By section and field.
      where: Text that each message begins with.

    Raises:
      UserError: For an unknown key, a missing field, or a value out of its range.
    """
    return _checked(model, _Values(_adopted(model, values)), where)


def _checked(model: type[Config], values: _Values, where: str) -> Config:
    try:
        config = model.model_validate(values.tree)
    except ValidationError as error:
        # Of a field with several types pydantic reports each; the same words need not stand twice.
        problems = dict.fromkeys(
            _describe(model, problem, values.unread) for problem in error.errors()
        )
        raise UserError("\n".join(f"{where}{problem}" for problem in problems)) from None
    refuse_urls_in(config, where)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads the sections of a YAML file; a repeated key is an error.

    Raises:
      UserError: If the file is missing, is not YAML, or holds no sections.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except InvalidYaml as error:
        line = "" if error.line is None else f":{error.line}"
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections such as 'model:', holds {values!r}")
    return values


def _adopted(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a YAML file with `model: PATH` and `model: {path: PATH}` made one."""
    adopted = dict(values)
    for name in PATHS:
        known = model.model_fields.get(name)
        given = values.get(name)
        if known is None or given is None:
            continue
        section = section_of(known.annotation)
        if section is not None and not isinstance(given, dict):
            adopted[name] = {"path": given}
        elif section is None and isinstance(given, dict):
            adopted |= _spread(model, name, given)
    return adopted


def _without_blanks(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values without required fields that are null: `path:` alone says nothing yet."""
    kept = {}
    for name, value in values.items():
        known = model.model_fields.get(name)
        section = section_of(known.annotation) if known is not None else None
        if section is not None and isinstance(value, dict):
            kept[name] = _without_blanks(section, value)
        elif known is None or value is not None or not known.is_required():
            kept[name] = value
    return kept


def _spread(model: type[BaseModel], name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that the section of another command's configuration sets in this one."""
    if not given.keys() & {"path", *(each.rpartition(".")[2] for each in other_names(model))}:
        return {name: given}
    spread = {}
    for key, value in given.items():
        place = find_key(model, f"{name}.{key}")
        if place is None:
            raise UserError(_unknown(model, f"{name}.{key}"))
        spread[place.parts[0]] = value
    return spread


def _apply(model: type[BaseModel], values: _Values, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: an override has the form section.field=value")
    place = find_key(model, key)
    if place is None:
        raise UserError(_unknown(model, key))
    value, readable = _read_value(key, text, place.annotation)
    parts = place.parts
    section = section_of(place.annotation)
    if section is not None and key in PATHS and not _is_section(section, value):
        parts = (*parts, "path")
    if not readable:
        values.unread.add(parts)
    tree = values.tree
    for i, part in enumerate(parts[:-1]):
        inner = tree.get(part)
        if inner is not None and not isinstance(inner, dict):
            whole = ".".join(parts[: i + 1])
            raise UserError(f"{key}: {whole} is already set, to {inner!r}; set one of the two")
        tree[part] = dict(inner or {})
        tree = tree[part]
    last, before = parts[-1], tree.get(parts[-1])
    # A section given whole keeps the fields that were set before it by their own keys.
    if section is not None and isinstance(before, dict) and isinstance(value, dict):
        value = before | value
    tree[last] = value


def _is_section(section: type[BaseModel], value: Any) -> bool:
    """Tells a section from a mapping of paths to weights, by the section's fields."""
    return value is None or (isinstance(value, dict) and bool(set(section.model_fields) & {*value}))


def _read_value(key: str, text: str, annotation: Any) -> tuple[Any, bool]:
    """Returns the value that a text stands for, and whether YAML could read it."""
    if not text:
        raise UserError(f"{key}=: no value is given; write {key}=VALUE, or {key}=null for none")
    try:
        value = load_yaml(text)
    except InvalidYaml as error:
        if error.readable:
            raise UserError(f"{key}: {error.problem}, in {text!r}") from None
        # `@quickstart/model`, `%d` and the like start no YAML value, but are fine texts; where no
        # text may stand, the check of the configuration says so, and that it was no YAML.
        return text, False
    if text[0] in "'\"":
        return value, True
    # YAML takes `a #1` for `a` and a comment, `a: b` for a mapping, and 2026 for a number; where
    # only a text may stand, the user has typed one.
    written_as_text = isinstance(value, str) and accepts_text(annotation)
    other = only_text(annotation) and value is not None
    return (text if written_as_text or other else value), True


def _unknown(model: type[BaseModel], key: str) -> str:
    """Returns the message for a key that no field has: the nearest known one, and all beside it."""
    names = key.split(".")
    # A message is about the outermost part that is unknown: of `los.beta` about `los`.
    for i in range(1, len(names)):
        # The shortest beginning that no field has is where the user went wrong.
        if find_key(model, ".".join(names[:i])) is None:
            names = names[:i]
            break
    section = ".".join(names[:-1])
    place = find_key(model, section) if section else None
    inner = model if not section else section_of(place.annotation) if place else None
    known = list(inner.model_fields) if inner is not None else []
    hint = suggestion(model, ".".join(names)) or suggestion(model, key)
    listed = f"; {section or 'the configuration'} has {', '.join(known)}" if known else ""
    return f"{'.'.join(names)}: unknown key{hint}{listed}"


def _describe(config: type[BaseModel], problem: Any, unread: set[tuple[str, ...]]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return _unknown(config, name)
    if problem["type"] == "missing":
        return f"{name}: must be given; set {_required(config, name)} on the command line or in " \
            "the YAML file"  # fmt: skip
    if problem["type"] == "value_error":
        # A section's own check names the fields and their values itself.
        return f"{name}{': ' if name else ''}{problem['ctx']['error']}"
    said = f"{name}: {problem['msg']}; it is {problem['input']!r}"
    if problem["type"] == "literal_error":
        choices = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        said += nearest(str(problem["input"]), choices)
    if any(tuple(location[: len(place)]) == place for place in unread):
        said += "; the value is not valid YAML, so it was taken as text"
    return said


def _required(config: type[BaseModel], name: str) -> str:
    """Returns how a missing field is set; of a section, each field that it cannot do without."""
    place = find_key(config, name)
    section = section_of(place.annotation) if place is not None else None
    if section is None:
        return f"{name}=…"
    needed = [f"{name}.{key}=…" for key, field in leaves(section) if field.is_required()]
    return " and ".join(needed) or f"{name}=…"

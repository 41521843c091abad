"""Finds the fields of a configuration by their dotted keys, and describes their types."""

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxdpo.errors import nearest

# A model and a data set are given by their path alone wherever a command takes one, whether its
# configuration has a section for them or a single field: `model=PATH` and `model.path=PATH` are
# the same in every command.
PATHS = ("model", "data")


class Place(NamedTuple):
    """The place that the value of a key belongs to.

    Attributes:
      parts: Keys of the nested mappings, from the outermost.
      annotation: Type of the value.
    """

    parts: tuple[str, ...]
    annotation: Any


def section_type(annotation: Any) -> type[Any]:
    """Returns the class in an annotation: LoraConfig for `LoraConfig | None`."""
    options = typing.get_args(annotation) or (annotation,)
    return next((option for option in options if isinstance(option, type)), object)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the configuration that a field of this type is a section of, if it is one."""
    kind = section_type(annotation)
    return kind if issubclass(kind, BaseModel) and not _is_many(annotation) else None


def find_key(model: type[BaseModel], key: str) -> Place | None:
    """Finds the field that a dotted key names.

        find_key(RunConfig, "loss.beta").parts  # ("loss", "beta")
        find_key(RunConfig, "model").parts      # ("model",), a section
        find_key(SampleConfig, "model.path")    # the same place as "model"

    Returns:
      The place of its value, or None where the configuration has no such key.
    """
    names = other_names(model).get(key, key).split(".")
    if len(names) == 2 and names[0] in PATHS and names[1] == "path":
        field = model.model_fields.get(names[0])
        if field is not None and section_of(field.annotation) is None:
            names = names[:1]
    # Down the sections, one name at a time, until a field that is none; what is left of the key
    # then is a name in a mapping, or too much.
    parts: list[str] = []
    annotation: Any = model
    while names:
        section = section_of(annotation)
        if section is not None:
            if names[0] not in section.model_fields:
                return None
            annotation = section.model_fields[names[0]].annotation
            parts.append(names.pop(0))
            continue
        values = _mapping_values(annotation)
        if values is None:
            return None
        # The names of models and files hold dots of their own: `models.v1.2=runs/x`.
        rest = [".".join(names)] if values is not Any else names
        return Place((*parts, *rest), values)
    return Place(tuple(parts), annotation)


def other_names(model: type[BaseModel]) -> dict[str, str]:
    """Returns the names that fields go by in other commands, each with the name here.

    A field declares one by `json_schema_extra={"also": "model.compute_dtype"}`.
    """
    found = {}
    for name, field in leaves(model):
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "also" in extra:
            found[str(extra["also"])] = name
    return found


def flag_names(model: type[BaseModel]) -> set[str]:
    """Returns the keys that are true or false, and may stand as `--key` alone."""
    found = {key for key, field in leaves(model) if bool in _options(field.annotation)}
    return found | {other for other, key in other_names(model).items() if key in found}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every field that is no section by its dotted key."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name, field
        else:
            yield from leaves(section, f"{prefix}{name}.")


def suggestion(model: type[BaseModel], key: str) -> str:
    """Returns which known key was probably meant, as `errors.nearest` says it, or nothing.

    Looks among the fields beside it first, then for a field of this name in any section.
    """
    *sections, name = key.split(".")
    # A name is mistyped more often than it is put into the wrong section, so the fields beside it
    # come before all others.
    place = find_key(model, ".".join(sections)) if sections else Place((), model)
    inner = section_of(place.annotation) if place is not None else None
    beside = list(inner.model_fields) if inner is not None else []
    known = {each: each.rpartition(".")[2] for each, _ in leaves(model)}
    namesakes = [each for each in model.model_fields if each == name and sections]
    namesakes += [each for each, last in known.items() if last == name]
    if close := nearest(name, beside):
        return close
    if namesakes:
        return f"; did you mean {namesakes[0]!r}?"
    return nearest(key, known)


def describe_type(field: FieldInfo) -> str:
    """Returns a field's type in words: `integer ≥ 1 or null`, `dense | tiles | splash`."""
    bounds = ", ".join(filter(None, map(_bound, field.metadata)))
    return _described(field.annotation, bounds)


def accepts_text(annotation: Any) -> bool:
    """Tells whether a text may be the value."""
    return str in _options(annotation)


def only_text(annotation: Any) -> bool:
    """Tells whether nothing but a text, or null, may be the value."""
    return set(_options(annotation)) <= {str, type(None)}


def _options(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, `Annotated` taken off; a single type alone."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(o for each in typing.get_args(annotation) for o in _options(each))
    return (annotation,)


def _is_many(annotation: Any) -> bool:
    # A list of configurations, as criteria are, is no section: its fields have no keys.
    return any(typing.get_origin(each) in (tuple, list) for each in _options(annotation))


def _mapping_values(annotation: Any) -> Any:
    """Returns the type of a mapping's values; None where the annotation is no mapping."""
    for option in _options(annotation):
        # A plain mapping has sections of its own, any number deep.
        if option is dict:
            return Any
        if typing.get_origin(option) is dict:
            return typing.get_args(option)[1]
    return None


def _bound(constraint: Any) -> str:
    for kind, sign in (
        (annotated_types.Ge, "≥"),
        (annotated_types.Gt, ">"),
        (annotated_types.Le, "≤"),
        (annotated_types.Lt, "<"),
    ):
        if isinstance(constraint, kind):
            return f"{sign} {getattr(constraint, kind.__name__.lower())}"
    return ""


def _described(annotation: Any, bounds: str = "") -> str:
    words = [_one(each, bounds) for each in _options(annotation)]
    # null comes last: it is the rarer thing to write.
    return " or ".join(sorted(dict.fromkeys(words), key=lambda word: word == "null"))


def _one(option: Any, bounds: str) -> str:
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (tuple, list):
        several = [_described(each) for each in inner if each is not ...]
        if ... in inner or origin is list:
            return f"list of: {several[0]}"
        return f"[{', '.join(several)}]"
    if origin is dict or option is dict:
        return f"mapping of names to {_described(inner[1])}" if inner else "mapping"
    if isinstance(option, type) and issubclass(option, BaseModel):
        return "{" + ", ".join(option.model_fields) + "}"
    plain = {str: "text", bool: "true | false", type(None): "null", int: "integer", float: "number"}
    word = plain.get(option, "any value")
    return f"{word} {bounds}" if bounds and option in (int, float) else word

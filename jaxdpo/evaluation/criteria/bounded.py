"""Regular expressions and JSON Schemas whose checks end, whatever an answer holds.

An expression such as `(a+)+$` takes Python's `re` longer than the universe is old on forty letters
that nearly match. The `regex` package gives up after a time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import referencing
import regex
from jsonschema import SchemaError, ValidationError, validators
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from referencing.exceptions import Unresolvable

# Of processor time, so that a busy machine judges as an idle one does. An expression that is not
# pathological takes microseconds on an answer of any length.
_SECONDS = 1.0


class TooSlow(Exception):
    """An expression that could not be tried on a text in time."""

    def __init__(self, pattern: str) -> None:
        super().__init__(f"the expression {pattern!r} took more than {_SECONDS:g} s")


def compile_pattern(pattern: str) -> "regex.Pattern[str]":
    """Compiles a regular expression.

    Raises:
      ValueError: If it is none.
    """
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def search(pattern: str, text: str) -> "regex.Match[str] | None":
    """Finds an expression in a text.

    Raises:
      TooSlow: If that takes more than a second.
    """
    try:
        return compile_pattern(pattern).search(text, timeout=_SECONDS)
    except TimeoutError:
        raise TooSlow(pattern) from None


def check_schema(schema: Any) -> None:
    """Checks that a JSON Schema can be decided here, from itself alone.

    Raises:
      ValueError: If it is no schema, refers to another document, or holds an expression that is
        none.
    """
    for place, part in _parts(schema, "$"):
        for key in ("$ref", "$dynamicRef"):
            target = part.get(key)
            if isinstance(target, str) and not target.startswith("#"):
                raise ValueError(
                    f"{place}.{key}: {target!r} is another document, which is not fetched; put the "
                    "schema that it names under $defs"
                )
        patterns = [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        if isinstance(part.get("patternProperties"), dict):
            patterns += part["patternProperties"]
            if "unevaluatedProperties" in part:
                raise ValueError(
                    f"{place}: unevaluatedProperties beside patternProperties is not supported; "
                    "use additionalProperties"
                )
        for pattern in patterns:
            compile_pattern(pattern)
    try:
        validators.validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.message}") from None


def find_problem(schema: Mapping[str, Any], value: Any) -> ValidationError | None:
    """Returns the most telling way in which a value breaks a schema, or None.

    Args:
      schema: A schema that `check_schema` has let pass.
      value: A JSON value.

    Raises:
      TooSlow: If an expression of the schema cannot be tried in time.
      ValueError: If the schema refers to what it does not hold, or to itself without end.
    """
    bounded = validators.extend(validators.validator_for(schema), _KEYWORDS)
    # An empty registry fetches nothing, neither files nor addresses.
    validator = bounded(schema, registry=referencing.Registry())
    try:
        return best_match(validator.iter_errors(value))
    except Unresolvable as error:
        raise ValueError(f"the schema refers to {error.ref!r}, which it does not hold") from None
    except RecursionError:
        raise ValueError("the schema refers to itself without end, or the answer is too deep") \
            from None  # fmt: skip


def _parts(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every object in a schema with its place, whatever it means there."""
    waiting = [(place, schema)]
    while waiting:
        at, part = waiting.pop()
        if isinstance(part, dict):
            yield at, part
            waiting += [(f"{at}.{key}", inner) for key, inner in part.items()]
        elif isinstance(part, list):
            waiting += [(f"{at}[{number}]", inner) for number, inner in enumerate(part)]


# The keywords that try expressions, as the specification has them and with a limit on time.
def _pattern(
    validator: Validator, pattern: str, value: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not search(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    for pattern, subschema in patterns.items():
        for key, inner in value.items():
            if search(pattern, key):
                yield from validator.descend(inner, subschema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    patterns = schema.get("patternProperties", {})
    extra = [
        key
        for key in value
        if key not in schema.get("properties", {}) and not any(search(p, key) for p in patterns)
    ]
    if validator.is_type(allowed, "object"):
        for key in extra:
            yield from validator.descend(value[key], allowed, path=key)
    elif not allowed and extra:
        yield ValidationError(f"{', '.join(map(repr, extra))} should not be there")


_KEYWORDS = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}

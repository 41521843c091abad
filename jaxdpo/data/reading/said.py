"""Messages that are still to be checked, and how a record says them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, kind, show


class Said(NamedTuple):
    """A message that is still to be checked, and the field it stands in."""

    field: str
    message: Any


class Parts(NamedTuple):
    """The messages of one pair: before both answers, and of each."""

    prompt: Sequence[Said]
    chosen: Sequence[Said]
    rejected: Sequence[Said]


def need(record: dict[str, Any], *keys: str) -> list[Any]:
    """Returns the values of keys that a record must have.

    Raises:
      BadPair: If one is missing or null.
    """
    # A table has null where a row has no such column; to a reader both are the same mistake.
    for key in keys:
        if record.get(key) is None:
            state = "null" if key in record else "missing"
            raise BadPair("missing-key", f"{key} is {state}; every line needs it")
    return [record[key] for key in keys]


def listed(messages: list[Any], name: str) -> list[Said]:
    """Puts beside each message the field that it stands in."""
    return [Said(f"{name}[{index}]", message) for index, message in enumerate(messages)]


def as_messages(value: Any, name: str, role: str) -> list[Said]:
    """Reads a string, one message or a list of messages as messages, exactly as they stand there.

    Args:
      value: What stands in the record.
      name: The field it stands in.
      role: Who says what stands there as a string.

    Raises:
      BadPair: If it is anything else.
    """
    if isinstance(value, str):
        return [Said(name, {"role": role, "content": value})]
    if isinstance(value, dict):
        return [Said(name, value)]
    if isinstance(value, list) and value:
        return listed(value, name)
    state = "an empty list" if value == [] else kind(value)
    raise BadPair("messages-type", f"{name} is {state}; write a string, or a list of messages")


def check_score(score: Any, name: str) -> None:
    """Refuses what is no number.

    Raises:
      BadPair: Naming it.
    """
    # True is a number in Python, and NaN is not equal to itself.
    if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
        raise BadPair("score-type", f"{name} is {show(score)}; write a number")

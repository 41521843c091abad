"""`data.columns`: the columns that the user names, under the names of their roles."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.config import Role
from jaxdpo.data.reading.columns import OTHER
from jaxdpo.errors import UserError, nearest

Columns = Mapping[Role, str | tuple[str, ...]]


class Renaming:
    """Names the columns of one source by what they hold, and remembers which it met.

    Args:
      columns: Paths of columns by role: `question`, `info.post` or `answers.0.text`.
    """

    def __init__(self, columns: Columns) -> None:
        self._paths: dict[Role, tuple[str, ...]] = {
            role: (paths,) if isinstance(paths, str) else paths
            for role, paths in columns.items()
            if role != "metadata"
        }
        facts = columns.get("metadata", ())
        self.facts = (facts,) if isinstance(facts, str) else facts
        self._missing = {path for paths in self._paths.values() for path in paths}
        self._seen: dict[str, None] = {}

    def apply(self, record: dict[str, Any]) -> dict[str, Any]:
        """Returns the record with each role's column under the role's name.

        Other columns keep their names, but for one whose name is now that of a role.

        Raises:
          BadPair: If several columns of a prompt are not all text.
        """
        # Without names nothing is changed, and nothing is copied.
        if not self._paths:
            return record
        found: dict[str, Any] = {}
        taken: set[str] = set()
        for role, paths in self._paths.items():
            values = []
            for path in paths:
                value, column = _at(record, path)
                if column is not None:
                    # One record that has the path is enough: columns may be null in others.
                    self._missing.discard(path)
                    # A whole column is used up; of a structure the rest is still to be looked at.
                    if column == path:
                        taken.add(column)
                    values.append(value)
            if values:
                found[role] = _joined(values, role, paths)
        for key, value in record.items():
            self._seen.setdefault(key)
            if key not in taken:
                rest = _without(value, key, self._paths.values())
                if rest is not None:
                    found[key + OTHER if key in found else key] = rest
        return found

    @property
    def missing(self) -> list[str]:
        """Paths that no record had so far."""
        return sorted(self._missing)

    @property
    def seen(self) -> list[str]:
        """Columns that records had, in the order in which they were met."""
        return list(self._seen)


def check_columns(name: str, missing: Sequence[str], seen: Sequence[str]) -> None:
    """Refuses a path that no record of a source had.

    Args:
      name: The source, for the message.
      missing: Paths that none had.
      seen: Columns that there are.

    Raises:
      UserError: Naming the path.
    """
    # Said at the end: only then is it known that no record has the column.
    if missing and seen:
        path = min(missing)
        raise UserError(
            f"data.columns: no record of {name} has {path}{nearest(path, seen)}; it has "
            f"{', '.join(seen[:12])}"
        )


def _at(record: dict[str, Any], path: str) -> tuple[Any, str | None]:
    """Finds a value, and the column that it stands in; no column where there is no such value."""
    # A column's own name may hold a dot.
    if path in record:
        return record[path], path
    value: Any = record
    steps = path.split(".")
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.lstrip("-").isdecimal() and _has(value, int(step)):
            value = value[int(step)]
        else:
            return None, None
    return value, steps[0]


def _has(values: list[Any], index: int) -> bool:
    return -len(values) <= index < len(values)


def _joined(values: list[Any], role: str, paths: tuple[str, ...]) -> Any:
    if len(values) == 1:
        return values[0]
    # An Alpaca record without an input has an empty one: it adds no line.
    texts = [value for value in values if value not in (None, "")]
    for value in texts:
        if not isinstance(value, str):
            raise BadPair(
                "columns-joined",
                f"data.columns.{role} joins {', '.join(paths)}, and one is {kind(value)}, "
                f"{show(value)}; only text can be joined",
            )
    return "\n".join(texts)


def _without(value: Any, key: str, paths: Any) -> Any:
    """Takes out of a structure what a path has read from it."""
    # What was read must not be looked at again, or it would be refused as text that nothing reads.
    inner = [
        path[len(key) + 1 :].split(".")
        for each in paths
        for path in each
        if path.startswith(key + ".")
    ]
    for steps in inner:
        value = _cut(value, steps)
    return value


def _cut(value: Any, steps: list[str]) -> Any:
    if not steps:
        return None
    step, *rest = steps
    if isinstance(value, dict) and step in value:
        return {k: _cut(item, rest) if k == step else item for k, item in value.items()}
    if isinstance(value, list) and step.lstrip("-").isdecimal() and _has(value, int(step)):
        at = int(step) % len(value)
        return [_cut(item, rest) if i == at else item for i, item in enumerate(value)]
    return value

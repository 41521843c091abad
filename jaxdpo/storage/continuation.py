"""The check that what is continued was begun with the same settings: "was a, is now b"."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.storage.files import replacing


def check_unchanged(
    what: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    remedy: str,
    may_change: Callable[[str], bool] = lambda name: False,
) -> None:
    """Refuses to continue what was begun with other settings.

    >>> check_unchanged("runs/a belongs to other settings", {"seed": 0}, {"seed": 1}, "go elsewhere")
    Traceback (most recent call last):
    jaxdpo.errors.UserError: runs/a belongs to other settings: seed was 0, is now 1. Put it back to continue, or go elsewhere

    Args:
      what: The beginning of the message: the place, and what it holds.
      before: The settings that it was begun with, by name.
      now: The settings of this call, by name.
      remedy: What to do in order to begin anew, in the imperative.
      may_change: Tells of a name whether its value may differ.

    Raises:
      UserError: Naming each setting that differs, with both values.
    """  # noqa: E501
    changed = [
        f"{name} was {before.get(name)!r}, is now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not may_change(name)
    ]
    if changed:
        them = "it" if len(changed) == 1 else "them"
        raise UserError(f"{what}: {'; '.join(changed)}. Put {them} back to continue, or {remedy}")


def keep_settings(path: Path, settings: Mapping[str, Any], what: str, remedy: str) -> None:
    """Writes settings to a JSON file, or compares them with those that it holds already.

    Args:
      path: The file.
      settings: Values that JSON can hold, by name.
      what: As for `check_unchanged`.
      remedy: As for `check_unchanged`.

    Raises:
      UserError: Naming each setting that differs, with both values.
    """
    # What is read back has lists for tuples and text for numeric keys, so the settings of this call
    # go through JSON as well before they are compared.
    now = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            before = error
        if not isinstance(before, dict):
            raise UserError(
                f"{path}: damaged, it is no JSON object; put a copy of it in its place, or {remedy}"
            )
        check_unchanged(what, before, now, remedy)
        return
    with replacing(path) as file:
        json.dump(now, file, indent=1, ensure_ascii=False)

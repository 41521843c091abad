"""JSON Lines files that an interrupted command continues.

answers.jsonl            every line, in order: there when all are
answers.jsonl.partial    the lines so far, as they came
answers.settings.json    what the lines depend on; other settings are refused
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxdpo.data.generations import Generation, Line
from jaxdpo.errors import UserError
from jaxdpo.storage.files import replacing


def partial_of(path: Path) -> Path:
    """Where the lines of a file stand until all are there."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, lines: Sequence[Generation], kept: Sequence[Generation]) -> None:
    """Puts the whole file, now that all lines are there, in the place of those so far.

    Args:
      path: The file.
      lines: All lines, in their order.
      kept: Those there were before; a file that holds just these, in this order, stays as it is.
    """
    if lines != kept or not path.exists():
        with replacing(path) as file:
            file.writelines(each.line() for each in lines)
    with suppress(FileNotFoundError):
        partial_of(path).unlink()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Keeps what a file depends on beside it, and refuses to continue a file that has another.

    Raises:
      UserError: Naming each setting that differs.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {before.get(name)!r}, is now {settings.get(name)!r}"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise UserError(
                f"{path} belongs to other settings: {'; '.join(changed)}. Put them back to "
                "continue it, or write to a new place"
            )
        return
    with replacing(path) as file:
        json.dump(settings, file, indent=1, ensure_ascii=False)


def read_partial(path: Path, line_type: type[Line]) -> list[Line]:
    """What was written before; a line that was cut off is cut away, so that others may follow."""
    if not path.exists():
        return []
    whole, found = 0, []
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(line_type.model_validate_json(line))
        except ValidationError:
            break
        whole += len(line)
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)
    return found

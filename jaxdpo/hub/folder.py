"""Model folders: checks which of their files may be read, and reads them."""

import json
from pathlib import Path
from typing import Any

from jaxdpo.errors import UserError

# In bytes. The index of the largest models takes a tenth of it.
_LARGEST_JSON = 2**26
# The folder from which transformers reads further chat templates.
_TEMPLATES = "additional_chat_templates"


def check_files(folder: Path) -> None:
    """Checks all files of a model folder, for libraries that would follow links and open pipes.

    Raises:
      UserError: For a file that `member` refuses.
    """
    for entry in folder.iterdir():
        if entry.name == _TEMPLATES and not entry.is_symlink() and entry.is_dir():
            check_files(entry)
        elif entry.is_symlink() or not entry.is_dir():
            member(folder, entry.name)


def member(folder: Path, name: str) -> Path:
    """Returns the path of a file that belongs to a model folder, whether it is there or not.

    Raises:
      UserError: If `name` is no plain file name, a link leads out of the folder, or it is no plain
        file. The Hub cache's links from a snapshot to the blobs beside it are followed.
    """
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise UserError(f"{folder}: {name!r} is not a plain file name in the model folder")
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: a link that leads nowhere; copy the file there") from error
    # The Hub's cache: models--org--name/{snapshots/<commit>/file → ../../blobs/<digest>}.
    blobs = home.parent.parent / "blobs"
    if real.parent != home and not (home.parent.name == "snapshots" and real.parent == blobs):
        raise UserError(f"{path}: a link to {real}, outside the model folder; copy the file there")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a folder, pipe or device, not a file")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object from a file of a model folder.

    Raises:
      UserError: If it is missing, too large, or something else.
    """
    path = member(folder, name)
    try:
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise UserError(f"{path}: has {size} bytes; such a file has {_LARGEST_JSON} at most")
        value = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_not_a_number,
            object_pairs_hook=_object,
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def _not_a_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys, so two readers could see different models.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return fields


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a model folder.

    Raises:
      UserError: If there is none.
    """
    if not member(folder, "config.json").exists():
        raise UserError(f"{folder}: holds no config.json, so it is not a Hugging Face model folder")
    return read_json(folder, "config.json")

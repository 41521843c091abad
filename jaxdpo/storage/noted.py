"""Small files of a folder, whose digests lie beside them in hidden files.

    .digests.json     {"digests": {"inputs.json": ["…"], …}, "sha256": "…"}
    .metrics.crc32    a checksum for each line of metrics.jsonl

The files themselves stay as other programs read them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.storage.files import replacing
from jaxdpo.storage.sealed import read_sealed, write_sealed

DIGESTS, METRIC_CHECKS = ".digests.json", ".metrics.crc32"


def write_noted(path: Path, text: str) -> None:
    """Writes a file, whole, and notes its digest."""
    notes = path.parent / DIGESTS
    known = _read_notes(notes)
    # The new digest is noted before the file is there, and the old one stays until the next time:
    # a process that is killed in between leaves a file that either of them tells to be whole.
    earlier = known.get(path.name, [])[-1:]
    known[path.name] = [*earlier, hashlib.sha256(text.encode("utf-8")).hexdigest()]
    write_sealed(notes, {"digests": known})
    with replacing(path) as file:
        file.write(text)


def read_noted(path: Path) -> str | None:
    """Reads a file; None if it is not there.

    Raises:
      UserError: If it is not as it was written. A file of an earlier version, or of a folder that
        was copied without its hidden files, is believed.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    known = _read_notes(path.parent / DIGESTS).get(path.name)
    if known is not None and hashlib.sha256(content).hexdigest() not in known:
        raise damaged(path, "it is not as it was written")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"no UTF-8 at byte {error.start}") from None


def read_noted_json(path: Path) -> Any:
    """Reads a JSON file; None if it is not there.

    Raises:
      UserError: If it is no JSON, or not as it was written.
    """
    text = read_noted(path)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no JSON: {error}") from None


def forget_notes(folder: Path) -> None:
    """Removes the digests of a folder, whose files were replaced by another program's."""
    for name in (DIGESTS, METRIC_CHECKS):
        (folder / name).unlink(missing_ok=True)


def damaged(path: Path, why: str) -> UserError:
    """Returns the message about a damaged file.

    Args:
      path: The file.
      why: What tells so.
    """
    return UserError(
        f"{path}: damaged: {why}; put a copy of it in its place, or move it away, and run the same "
        f"command again; if somebody changed it on purpose, remove {DIGESTS} and {METRIC_CHECKS} "
        "beside it"
    )


def _read_notes(path: Path) -> dict[str, list[str]]:
    found = read_sealed(path)
    return {} if found is None else found["digests"]

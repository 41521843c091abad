"""Manifests: a folder counts once its manifest stands in it, and only while it is as that says.

manifest.json   {"step": 200, …, "files": {"state/…": {"size": …, "sha256": …}, …},
                 "sha256": digest of all of this}
"""

import errno
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdpo.storage.files import file_digest, json_digest, replacing, sync_tree

MANIFEST = "manifest.json"
Inventory = dict[str, dict[str, Any]]
# Orbax puts what process i writes into a folder of this name.
_OF_PROCESS = re.compile(r"(?:^|/)ocdbt\.process_(\d+)/")
# Digests that another process computed, until the manifest holds them.
_PART = ".digests.{}.json"
_POLL = 0.05


def write_manifest(folder: Path, about: dict[str, Any], count: int = 1) -> int:
    """Makes a folder count; its manifest is written last, when everything else is on disk.

    Of a run of several processes, process 0 calls this, and each of the others `write_part`.

    Args:
      folder: The folder, complete.
      about: What the manifest says beside the files.
      count: The run's processes.

    Returns:
      Bytes of the folder's files.

    Raises:
      OSError: If it cannot be written, or another process does not do its part in ten minutes.
    """
    # A power cut leaves no manifest of files that are not there.
    sync_tree(folder)
    files = inventory(folder, 0, count)
    for index in range(1, count):
        files |= _read_part(folder / _PART.format(index))
    manifest = {**about, "files": dict(sorted(files.items()))}
    with replacing(folder / MANIFEST) as file:
        json.dump(manifest | {"sha256": json_digest(manifest)}, file, indent=1)
    for index in range(1, count):
        (folder / _PART.format(index)).unlink()
    return sum(entry["size"] for entry in files.values())


def write_part(folder: Path, index: int, count: int) -> None:
    """Digests what this process wrote to a folder, for the manifest that process 0 writes.

    Args:
      folder: The folder.
      index: Number of this process.
      count: How many there are.
    """
    files = inventory(folder, index, count)
    for name in files:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    with replacing(folder / _PART.format(index)) as file:
        json.dump(files, file)


def _read_part(path: Path, limit: float = 600.0) -> Inventory:
    until = time.monotonic() + limit
    while not path.exists():
        if time.monotonic() > until:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path))
        time.sleep(_POLL)
    return json.loads(path.read_text(encoding="utf-8"))


def whole_manifest(folder: Path, index: int = 0, count: int = 1) -> dict[str, Any] | None:
    """Reads the manifest of a folder; None if that is missing or damaged, or any file is.

    Args:
      folder: The folder.
      index: Number of this process.
      count: Processes that look at the files together, each at those of one or several.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        # Versions before wrote no digest of the manifest itself.
        digest = manifest.pop("sha256", None)
        if digest is not None and digest != json_digest(manifest):
            return None
        mine = _part(manifest["files"], index, count)
        return manifest if mine == inventory(folder, index, count) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def inventory(folder: Path, index: int = 0, count: int = 1) -> Inventory:
    """Lists size and digest of the files below a folder that fall to a process.

    The manifest is excepted, and what is only there until it is written.

    Args:
      folder: The folder.
      index: Number of the process.
      count: How many there are.
    """
    found = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _passing(path.name)
    }
    return {
        name: {"size": path.stat().st_size, "sha256": file_digest(path)}
        for name, path in _part(found, index, count).items()
    }


def _passing(name: str) -> bool:
    return name == MANIFEST or name.endswith(".tmp") or name.startswith(".digests.")


def _part(files: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    """Returns the files that fall to a process: those that it wrote; the first has the rest."""

    def process_of(name: str) -> int:
        found = _OF_PROCESS.search(name)
        # A run may go on with fewer processes than have written.
        return int(found[1]) % count if found else 0

    return {name: value for name, value in files.items() if process_of(name) == index}

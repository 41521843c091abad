"""Manifests: a folder counts once its manifest stands in it, and only while it is as that says.

manifest.json   {"step": 200, …, "files": {"state/…": {"size": …, "sha256": …}, …},
                 "sha256": digest of all of this}
"""

import json
from pathlib import Path
from typing import Any

from jaxdpo.storage.files import file_digest, json_digest, replacing, sync_tree

MANIFEST = "manifest.json"


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Makes a folder count; its manifest is written last, when everything else is on disk.

    Args:
      folder: The folder, complete.
      about: What the manifest says beside the files.
    """
    # A power cut leaves no manifest of files that are not there.
    sync_tree(folder)
    manifest = {**about, "files": _inventory(folder)}
    with replacing(folder / MANIFEST) as file:
        json.dump(manifest | {"sha256": json_digest(manifest)}, file, indent=1)


def whole_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a folder; None if that is missing or damaged, or any file is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        # Versions before wrote no digest of the manifest itself.
        digest = manifest.pop("sha256", None)
        if digest is not None and digest != json_digest(manifest):
            return None
        return manifest if manifest["files"] == _inventory(folder) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Lists size and digest of every file below a folder, the manifest excepted."""
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp")
    }

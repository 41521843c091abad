"""Folders and safetensors files that are whole or not there."""

import contextlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open

from jaxdpo.errors import UserError
from jaxdpo.storage.buckets import is_bucket, read_names, send
from jaxdpo.storage.files import file_digest, move_folder, sync_folder, sync_tree
from jaxdpo.storage.sealed import read_sealed, sealed
from jaxdpo.storage.temporary import TemporaryFolder
from jaxdpo.storage.urls import refuse_url, written_url

# Lists the files of an export, so that a later one replaces nothing else.
MANIFEST = "jaxdpo_export.json"
# The files without which a folder is no model or adapter, written last.
_COUNTING = ("adapter_config.json", "config.json", MANIFEST)

# The safetensors format's word for a type ↦ NumPy's.
DTYPES: dict[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@contextlib.contextmanager
def exporting(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, which takes `folder`'s place when the block ends well.

    An earlier export is replaced if it is just as it was written; any other folder that holds
    something is left alone.

    Raises:
      UserError: If something else is in the way, the disk refuses, or `folder` is a URL.
    """
    if is_bucket(folder):
        with _made_here(folder) as local:
            yield local
        return
    refuse_url(folder)
    _check_replaceable(folder)
    previous = folder.with_name(f".{folder.name}.previous")
    try:
        # An export that was killed between its two renames below left the earlier one there.
        if previous.exists() and not folder.exists():
            move_folder(previous, folder, last=_COUNTING)
        # The first is what earlier versions wrote to.
        for left_over in (folder.with_name(f".{folder.name}.partial"), previous):
            shutil.rmtree(left_over, ignore_errors=True)
        held = TemporaryFolder(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error
    temporary = held.path
    try:
        yield temporary
        _write_manifest(temporary)
        sync_tree(temporary)
        # A folder cannot be replaced in one system call, but between these two renames the earlier
        # export still lies beside it under another name.
        if folder.exists():
            move_folder(folder, previous, last=_COUNTING)
        move_folder(temporary, folder, last=_COUNTING)
        sync_folder(folder.parent)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        # The new one did not get its name; the earlier one has it back.
        if previous.exists() and not folder.exists():
            with contextlib.suppress(OSError):
                move_folder(previous, folder, last=_COUNTING)
        raise UserError(f"{folder}: cannot be written: {error}") from error
    finally:
        held.close()


@contextlib.contextmanager
def _made_here(url: Path) -> Iterator[Path]:
    """Yields a local folder to write to, which is sent to a bucket when the block ends well."""
    present = read_names(url, MANIFEST)
    if present is not None:
        _refuse_others(written_url(url), present.names, present.content)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        _write_manifest(folder)
        send(folder, url, last=[name for name in _COUNTING if (folder / name).exists()])


def _write_manifest(folder: Path) -> None:
    """Notes which files a later export may replace, and their digests, for `damaged_files`."""
    digests = {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    names = sorted(path.name for path in folder.iterdir())
    text = sealed({"files": names, "digests": digests})
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def damaged_files(folder: Path) -> list[str]:
    """Compares an exported folder with its manifest.

    Args:
      folder: A model or adapter folder.

    Returns:
      Names of the files that are missing or not as they were exported: by a damaged disk, an
      incomplete copy, or somebody's edit. None for a folder without a manifest of digests.
    """
    if not (folder / MANIFEST).exists():
        return []
    manifest = read_sealed(folder / MANIFEST)
    if manifest is None:
        # Earlier versions wrote names alone.
        return [] if "digests" not in _read_manifest(folder) else [MANIFEST]
    return [
        name
        for name, digest in manifest["digests"].items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]


def _read_manifest(folder: Path) -> str:
    return (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the export")
    found = {path.name for path in folder.iterdir()}
    manifest = _read_manifest(folder) if MANIFEST in found else None
    _refuse_others(str(folder), found, manifest)


def _refuse_others(folder: str, found: set[str], manifest: str | None) -> None:
    """Refuses a folder that holds what no export put there.

    Args:
      folder: Its name.
      found: Names of its files.
      manifest: Text of its manifest, if it has one.

    Raises:
      UserError: Naming one of the others.
    """
    written: set[str] = set()
    if manifest is not None:
        try:
            written = {*map(str, json.loads(manifest)["files"]), MANIFEST}
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{folder}/{MANIFEST}: damaged, so nothing tells which files may be replaced; name "
                "another folder, or move this one away"
            ) from error
    if found - written:
        raise UserError(
            f"{folder}: holds {sorted(found - written)[0]}, which no export put there; "
            "name another folder, or move it away"
        )


class TensorSpec(NamedTuple):
    """Shape and numpy dtype of a tensor that is still to come."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def write_tensors(
    path: Path, specs: Mapping[str, TensorSpec], arrays: Iterator[np.ndarray]
) -> None:
    """Writes a safetensors file with one tensor at a time in memory, and reads it again.

    The format is 8 bytes of header length, a JSON header of offsets, and the tensors' bytes:
    https://huggingface.co/docs/safetensors

    Args:
      path: The file.
      specs: Every tensor of the file, in order.
      arrays: Their values, in the same order; no more are taken than there are specs.

    Raises:
      OSError: If what is read back is not what was written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size
        dtype = _DTYPE_NAMES[np.dtype(spec.dtype)]
        header[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Padded, so that the tensors begin at a multiple of eight bytes.
    encoded += b" " * (-len(encoded) % 8)
    checksums: dict[str, int] = {}
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, spec in specs.items():
            array = np.ascontiguousarray(next(arrays), dtype=spec.dtype)
            assert array.shape == spec.shape, (name, array.shape, spec.shape)
            file.write(_bytes(array))
            checksums[name] = zlib.crc32(_bytes(array))
        file.flush()
        os.fsync(file.fileno())
    for name, checksum in checksums.items():
        # Opened anew for each tensor: an open file is mapped, and what was read of it stays in
        # memory.
        with safe_open(path, framework="np") as file:
            if zlib.crc32(_bytes(file.get_tensor(name))) != checksum:
                raise OSError(f"{path.name}: {name} reads back differently from what was written")


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data

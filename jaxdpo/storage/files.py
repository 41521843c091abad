"""Files that are whole or not there, and those that come with the package."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jaxdpo.errors import UserError, nearest
from jaxdpo.storage.temporary import open_temporary
from jaxdpo.storage.urls import refuse_url

# Errors by which file systems say that they have no such operation. gcsfuse gives EMFILE for the
# rename of a folder with more files than its limit.
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EMFILE)

_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def shipped(path: str) -> str:
    """Returns the installed package's file for `@quickstart/pairs.jsonl`, other paths as given.

    A name without a slash, such as `@smollm2`, is a model of another package, which
    `jaxdpo.hub.find` finds.

    Raises:
      UserError: If no such file comes with the package, naming the nearest one that does.
    """
    if not path.startswith("@") or "/" not in path:
        return path
    package = Path(__file__).parents[1]
    file = package / path[1:]
    if not file.exists():
        there = [f"@{file.parent.name}/{each.name}" for each in file.parent.glob("*")]
        raise UserError(f"{path}: does not come with the package{nearest(path, there)}")
    return str(file)


def cache_folder(path: str | None) -> Path:
    """Returns the folder of what may be used again: $JAXDPO_CACHE or ~/.cache/jaxdpo by default.

    Raises:
      UserError: If it is a URL, because caches are files that this machine maps into memory; or
        if it lies in the home folder of a user who has none.
    """
    named = path or os.environ.get("JAXDPO_CACHE") or "~/.cache/jaxdpo"
    refuse_url(named, "data.cache_dir" if path else "JAXDPO_CACHE")
    try:
        return Path(named).expanduser()
    except RuntimeError:
        # A container's user may have no entry in /etc/passwd and no HOME.
        raise UserError(
            f"{named}: this user has no home folder; set JAXDPO_CACHE, or data.cache_dir, to a "
            "folder for what may be used again"
        ) from None


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file that takes `path`'s place, complete and on disk, when the block ends well.

    >>> with replacing(Path("settings.json")) as file:  # doctest: +SKIP
    ...     file.write("{}")

    Raises:
      UserError: If the path is a URL.
    """
    refuse_url(path)
    with naming(path):
        file, temporary = open_temporary(path, mode)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                # The content is on disk before the name is: after a power cut the name stands for
                # either the old file or the whole new one.
                os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives what the system refuses within the block the name of the file that it is about.

    A write that fails names no file, and one to a temporary file names that.
    """
    try:
        yield
    except OSError as error:
        temporary = f".{path.name}." in str(error.filename or "")
        if error.filename is None or temporary:
            error.filename, error.filename2 = str(path), None
        raise


def refuse_existing(path: Path) -> None:
    """Refuses to write over a file that holds something.

    Raises:
      UserError: If there is one.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if path.exists() and path.stat().st_size:
        raise UserError(f"{path}: is there already; set overwrite=true, or name another file")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the file system has a way to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # gcsfuse and some SMB mounts know no fsync of a folder; their names are on the server.
        if not is_unsupported(error):
            raise
    finally:
        os.close(descriptor)


def is_unsupported(error: OSError) -> bool:
    """Tells whether a file system refused a call because it has no such operation."""
    return error.errno in _UNSUPPORTED


def move_folder(folder: Path, target: Path, last: Sequence[str] = ()) -> None:
    """Moves a folder to where none is: at once, or file by file where no folder can be renamed.

    Args:
      folder: The folder.
      target: Its new path, on the same file system.
      last: Names of the files without which the folder does not count, moved last.

    Raises:
      OSError: If the file system refuses that, too.
    """
    try:
        folder.rename(target)
        return
    except OSError as error:
        if not is_unsupported(error):
            raise
    # A bucket that is mounted as a file system has no folders, and so none to rename.
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in sorted(names, key=lambda name: last.index(str(name)) if str(name) in last else -1):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, target / name)
    shutil.rmtree(folder)


def sync_tree(folder: Path) -> None:
    """Makes every file and name below a folder durable."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def file_digest(path: Path) -> str:
    """Computes the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Computes the SHA-256 of a JSON value, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(_canonical(value).encode("utf-8")).hexdigest()


def stamp_of(path: Path) -> tuple[int, int]:
    """Returns a file's size and its time of change in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns

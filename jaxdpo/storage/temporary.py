"""Temporary files and folders beside what they become, and the removal of those of dead processes.

    .about.json.3fa94c0d11b2.tmp     is being written to become about.json

A process holds a lock on what it writes, which the system releases however the process dies: so
whoever writes the same name next can tell what was left behind from what is under way, on another
host or in another container too, where process numbers mean nothing.
"""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import IO, Any

# Where a file system has no locks, what nobody has written to for this long was left behind.
_ABANDONED_SECONDS = 24 * 3600
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def temporary_of(target: Path) -> Path:
    """Returns a name of its own for what is to take a file's or a folder's place.

    It lies in the same folder, because a rename is atomic only within one file system. It is
    random, because two containers or hosts on one file system may have equal process numbers.
    """
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")


def open_temporary(target: Path, mode: str) -> tuple[IO[Any], Path]:
    """Creates the file that is to take another one's place, and holds it while it is open.

    Args:
      target: The file that it is to become.
      mode: As of `open`, "w" or "wb".

    Returns:
      The open file, and its name.
    """
    remove_leftovers(target)
    while True:
        path = temporary_of(target)
        encoding = None if "b" in mode else "utf-8"
        file = open(path, mode.replace("w", "x"), encoding=encoding)  # noqa: SIM115
        _lock(file.fileno())
        if _is_named(file.fileno(), path):
            return file, path
        # Between its creation and its lock another process took it for left behind.
        file.close()


class TemporaryFolder:
    """A folder that is to take another one's place, held until it is closed.

    Attributes:
      path: Where it is.
    """

    def __init__(self, target: Path) -> None:
        """Makes the folder beside `target`, and removes those that were left behind there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        while True:
            self.path = temporary_of(target)
            # Not by mkdtemp, which makes it private: a team may share a cache.
            self.path.mkdir()
            self._descriptor = os.open(self.path, os.O_RDONLY)
            _lock(self._descriptor)
            if _is_named(self._descriptor, self.path):
                return
            os.close(self._descriptor)

    def close(self) -> None:
        """Removes it, unless it has become what it was to be."""
        os.close(self._descriptor)
        shutil.rmtree(self.path, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Removes what dead processes left of a file or folder that they were about to replace.

    What cannot be removed stays: it is in nobody's way.
    """
    for name in glob.iglob(f".{glob.escape(target.name)}.*.tmp", root_dir=target.parent):
        with contextlib.suppress(OSError):
            remove_abandoned(target.parent / name)


def remove_abandoned(path: Path) -> None:
    """Removes a temporary file or folder, unless a process holds it.

    Raises:
      OSError: If that cannot be done.
    """
    is_folder = path.is_dir()
    # A network file system may lock only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        if not _is_abandoned(descriptor):
            return
        # Still under the lock, so that nobody begins to write to it meanwhile.
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_held(error: OSError) -> bool:
    """Tells whether a lock was refused because another process has it, not for want of locks."""
    return error.errno in _HELD


def _is_abandoned(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if is_held(error):
            return False
        # Lustre without `-o flock`, some FUSE mounts.
        return time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_SECONDS


def _lock(descriptor: int) -> None:
    # Without locks what is under way is told by its age.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_named(descriptor: int, path: Path) -> bool:
    """Tells whether an open file or folder is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

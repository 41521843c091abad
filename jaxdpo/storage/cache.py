"""The folder of what may be used again: what is in it, and how it is kept within limits.

    ~/.cache/jaxdpo/
      pairs/<key>/              tokenised pairs
      shares/<key>/             files of large data that are tokenised, until all are
      reference/<key>.npy …     log-probs of reference models
      digests/                  digests of data files, so that unchanged ones are not read again
      compiled/<processor>/     compiled programs, which JAX keeps within a limit of its own
      models/<name>/            models converted from GGUF files of Python packages
      buckets/<key>/            local copies of what lies in object stores
      mirrors/<key>/            local copies of run folders that live in object stores
      judge_replies.jsonl       replies of judges, which were paid for

Everything but the last can be made again. Each entry appears whole, under a name that says what it
depends on; what is read from one is compared with digests in it. Its time of use is the newest time
of change of its files, for many file systems note no times of access.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jaxdpo.errors import UserError
from jaxdpo.storage.temporary import remove_abandoned

Kind = Literal[
    "pairs", "shares", "reference", "digests", "compiled", "models", "buckets", "mirrors"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Kinds of which the whole folder is one entry: single files of it mean nothing to anyone.
_WHOLE = ("digests",)
DEFAULT_GIB, DEFAULT_DAYS = 100.0, 90.0
_LIMITS = {"JAXDPO_CACHE_GIB": DEFAULT_GIB, "JAXDPO_CACHE_DAYS": DEFAULT_DAYS}
_LOCK, _TIDIED = ".lock", ".tidied"
# An entry that was used this recently may still be read by name, so it stays.
_IN_USE_SECONDS = 3600.0
_TIDY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Entry:
    """One thing in the cache that is used, and removed, as a whole.

    Attributes:
      kind: Its kind.
      name: Its name within that.
      paths: Its files and folders.
      size: Bytes on disk.
      used: When it was used last, in seconds since 1970.
    """

    kind: Kind
    name: str
    paths: tuple[Path, ...]
    size: int
    used: float


@dataclass(frozen=True)
class Limits:
    """Limits of a cache.

    Attributes:
      size: Bytes.
      age: Seconds since an entry was used.
    """

    size: float
    age: float


def limits_of_environment() -> Limits:
    """Returns the limits that $JAXDPO_CACHE_GIB and $JAXDPO_CACHE_DAYS set, or the default ones.

    Raises:
      UserError: If one is no number.
    """
    given = {}
    for name, default in _LIMITS.items():
        text = os.environ.get(name) or str(default)
        try:
            given[name] = float(text)
        except ValueError:
            raise UserError(f"{name}: {text!r} is no number") from None
    gib, days = given.values()
    return Limits(gib * 2**30, days * 24 * 3600)


def list_entries(folder: Path, kinds: Sequence[Kind] = KINDS) -> list[Entry]:
    """Lists what is in a cache, those that were used longest ago first."""
    found = [entry for kind in kinds for entry in _entries_of(folder / kind, kind)]
    return sorted(found, key=lambda entry: entry.used)


def _entries_of(folder: Path, kind: Kind) -> Iterator[Entry]:
    if not folder.is_dir():
        return
    if kind in _WHOLE:
        yield _entry(kind, kind, (folder,))
        return
    groups: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        # Hidden ones are locks, and what is being written. Files of one entry share its key.
        if not path.name.startswith("."):
            name = path.name if path.is_dir() and kind == "models" else path.name.partition(".")[0]
            groups.setdefault(name, []).append(path)
    for name, paths in groups.items():
        yield _entry(kind, name, tuple(sorted(paths)))


def _entry(kind: Kind, name: str, paths: tuple[Path, ...]) -> Entry:
    size, used = 0, 0.0
    for path in paths:
        for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
            # Another process may remove files meanwhile.
            with contextlib.suppress(FileNotFoundError):
                found = each.stat()
                size += found.st_blocks * 512
                used = max(used, found.st_mtime)
    return Entry(kind, name, paths, size, used)


def mark_used(path: Path) -> None:
    """Notes at a file of an entry that this was used now, if the folder can be written to."""
    with contextlib.suppress(OSError):
        os.utime(path)


def prune(folder: Path, limits: Limits, kinds: Sequence[Kind] = KINDS) -> list[Entry]:
    """Removes what exceeds the limits, and what dead processes left; returns what was removed.

    What was used longest ago goes first. What was used within the last hour stays.

    Args:
      folder: The cache.
      limits: The limits; that of the size is of these kinds together.
      kinds: What to look at.

    Raises:
      UserError: If another process is at it.
    """
    with _locked(folder):
        return _prune(folder, limits, kinds)


def clear(folder: Path, kinds: Sequence[Kind] = KINDS) -> list[Entry]:
    """Removes all entries of some kinds, and returns them.

    Programs that have opened one go on reading it; one that opens it now makes it again.

    Args:
      folder: The cache.
      kinds: What to remove.

    Raises:
      UserError: If another process is at it.
    """
    with _locked(folder):
        found = list_entries(folder, kinds)
        for entry in found:
            remove(entry)
        return found


def tidy(folder: Path) -> None:
    """Prunes a cache by the limits of the environment, once a day; called by whoever adds to it.

    Raises:
      UserError: If a limit in the environment is no number.
    """
    mark, limits = folder / _TIDIED, limits_of_environment()
    with contextlib.suppress(OSError):
        if mark.exists() and time.time() - mark.stat().st_mtime < _TIDY_SECONDS:
            return
        mark.touch()
        # If another process is at it, that will do.
        with contextlib.suppress(UserError), _locked(folder):
            _prune(folder, limits, KINDS)


def _prune(folder: Path, limits: Limits, kinds: Sequence[Kind]) -> list[Entry]:
    for kind in kinds:
        _remove_leftovers(folder / kind)
    found, now = list_entries(folder, kinds), time.time()
    total, removed = sum(entry.size for entry in found), []
    for entry in found:
        age = now - entry.used
        if age < _IN_USE_SECONDS or (age <= limits.age and total <= limits.size):
            continue
        remove(entry)
        total -= entry.size
        removed.append(entry)
    return removed


def _remove_leftovers(folder: Path) -> None:
    # Not below that: what lies in a copy of somebody's bucket may have any name.
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                remove_abandoned(path)


def remove(entry: Entry) -> None:
    """Removes an entry at once for whoever looks for it, and then its files."""
    # Under a hidden name first, where nobody looks for it: half an entry must not count.
    for path in entry.paths:
        hidden = path.with_name(f".{path.name}.removed.tmp")
        try:
            path.rename(hidden)
        except FileNotFoundError:
            continue
        if hidden.is_dir():
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is tidying it; wait for it") from None
        except OSError:
            # Without locks two processes may remove the same entries, which harms neither.
            pass
        yield

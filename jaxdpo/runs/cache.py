"""Lists, prunes, clears and verifies what may be used again, for `python -m jaxdpo.cache`."""

import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.cli.console import Reporter
from jaxdpo.data.tokenization.load_pairs import verify_stored
from jaxdpo.errors import UserError
from jaxdpo.hub.export import damaged_files
from jaxdpo.scoring.reference import verify_scores
from jaxdpo.storage.cache import (
    KINDS,
    Entry,
    Kind,
    Limits,
    clear,
    limits_of_environment,
    list_entries,
    prune,
    remove,
)
from jaxdpo.storage.files import cache_folder


class CacheConfig(BaseModel):
    """Options of the cache command: what is done, and with how much of the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["list", "prune", "clear", "verify"] = Field(
        default="list",
        description="list what is there; prune to the limits; clear all; or compare all with its "
        "digests, and remove what is damaged",
    )
    folder: str | None = Field(
        default=None, description="default: $JAXDPO_CACHE, or ~/.cache/jaxdpo"
    )
    kind: Kind | None = Field(default=None, description="only what is of this kind")
    max_gib: float | None = Field(
        default=None, ge=0, description="limit of size; default: $JAXDPO_CACHE_GIB, or 100"
    )
    max_days: float | None = Field(
        default=None,
        ge=0,
        description="limit of days since the last use; default: $JAXDPO_CACHE_DAYS, or 90",
    )


def tend_cache(config: CacheConfig) -> list[Entry]:
    """Lists, prunes, clears or verifies the cache, and shows what it found or removed.

    Args:
      config: What is done.

    Returns:
      The entries that were listed or removed.

    Raises:
      UserError: If another process is tidying the cache, or if entries were damaged, once they are
        removed.
    """
    folder, reporter = cache_folder(config.folder), Reporter()
    kinds: tuple[Kind, ...] = KINDS if config.kind is None else (config.kind,)
    if config.action == "list":
        found = list_entries(folder, kinds)
        _show(reporter, f"{folder}", found)
        return found
    if config.action == "verify":
        return _verify(reporter, folder, kinds)
    if config.action == "clear":
        removed = clear(folder, kinds)
    else:
        limits = limits_of_environment()
        size = limits.size if config.max_gib is None else config.max_gib * 2**30
        age = limits.age if config.max_days is None else config.max_days * 24 * 3600
        removed = prune(folder, Limits(size, age), kinds)
    _show(reporter, f"{folder}: removed", removed)
    return removed


def _verify(reporter: Reporter, folder: Path, kinds: tuple[Kind, ...]) -> list[Entry]:
    checked, damaged = 0, []
    for entry in list_entries(folder, kinds):
        whole = _is_whole(entry)
        checked += whole is not None
        if whole is False:
            damaged.append(entry)
    reporter.say(f"{folder}: {checked} entries compared with their digests, {len(damaged)} damaged")
    if damaged:
        for entry in damaged:
            remove(entry)
        names = ", ".join(f"{entry.kind}/{entry.name[:12]}" for entry in damaged)
        raise UserError(
            f"{folder}: damaged, and removed: {names}; they are made again when they are needed. "
            "Check the disk"
        )
    return damaged


def _is_whole(entry: Entry) -> bool | None:
    """Tells whether an entry is as it was written; None of a kind that carries no digests."""
    if entry.kind == "pairs":
        return verify_stored(entry.paths[0])
    if entry.kind == "reference":
        return verify_scores(entry.paths)
    if entry.kind == "models":
        return not damaged_files(entry.paths[0])
    return None


def _show(reporter: Reporter, title: str, entries: list[Entry]) -> None:
    size = sum(entry.size for entry in entries)
    rows = [(entry.kind, entry.name[:40], _size(entry.size), _day(entry.used)) for entry in entries]
    reporter.table(
        f"{title}: {len(entries)} entries, {_size(size)}",
        ("kind", "name", "size", "used"),
        rows,
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")

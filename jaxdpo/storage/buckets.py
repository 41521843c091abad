"""Folders in object stores: fetched to a local copy, and sent from one.

A store knows objects and their names, and nothing else of a file system: a folder cannot be renamed
into place, and an object that is written appears when its upload ends. So everything is made
locally first, and sent file by file; the file that makes the folder count is sent last and, where
one stands there already, removed first. Whoever reads in between finds no such folder, and never
half of one.

Credentials are those that the store's own tools use (environment, metadata server, files in HOME);
none is written or shown here.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import fsspec

from jaxdpo.errors import UserError, nearest
from jaxdpo.storage.files import cache_folder, replacing
from jaxdpo.storage.urls import scheme_of, written_url

# Scheme ↦ the package that fsspec reaches the store with, and the extra that brings it.
_PACKAGES = {
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "az": ("adlfs", None),
    "abfs": ("adlfs", None),
    "abfss": ("adlfs", None),
    "hf": ("huggingface_hub", None),
}
# A limit of ours: botocore's own retries, times the five of s3fs, would hide for minutes that a
# store is gone. (gcsfs tries six times within half a minute, and has no setting for that.)
_BOTO = {"retries": {"max_attempts": 1}, "connect_timeout": 5, "read_timeout": 30}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": _BOTO},
    "s3a": {"config_kwargs": _BOTO},
}
# What a local copy was made of: object ↦ version.
LISTING = ".listing.json"
# What tells one version of an object from the next, by store: the first that its listing has.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "LastModified", "mtime", "created")


def is_bucket(path: str | PurePath) -> bool:
    """Tells whether a path is the URL of an object store, and not one of the web."""
    return scheme_of(path) not in (None, "file", "http", "https")


def open_store(url: str | PurePath) -> tuple[Any, str]:
    """Opens the object store of a URL.

    Returns:
      The store as fsspec presents it, and the path within.

    Raises:
      UserError: If the scheme is unknown, or the package for it is not installed.
    """
    check_scheme(url)
    text = written_url(url)
    # They log a traceback for each failed attempt; the last failure is in the message.
    for name in ("gcsfs", "google.auth._default"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with store_errors(text, "reached"):
        return fsspec.core.url_to_fs(text, **_OPTIONS.get(scheme_of(text) or "", {}))


def check_scheme(url: str | PurePath) -> None:
    """Refuses a URL that nothing installed can reach; it asks no network.

    Raises:
      UserError: If the scheme is unknown, or the package for it is not installed.
    """
    text, scheme = written_url(url), scheme_of(url) or ""
    if scheme not in fsspec.available_protocols():
        raise UserError(
            f"{text}: nothing here reads {scheme}:// addresses{nearest(scheme, _PACKAGES)}; there "
            f"are {', '.join(_PACKAGES)} and what else fsspec knows"
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        package, extra = _PACKAGES.get(scheme, (None, None))
        wanted = f"'jaxdpo[{extra}]'" if extra else package or f"fsspec[{scheme}]"
        raise UserError(
            f"{text}: needs a package that is not installed: pip install {wanted}"
        ) from None


def usable(path: str) -> str:
    """Returns a path as it is, once it is no URL or one of a store that can be reached from here.

    Raises:
      ValueError: If nothing here reads such addresses; pydantic makes it a message of the field.
    """
    if is_bucket(path):
        try:
            check_scheme(path)
        except UserError as error:
            raise ValueError(str(error)) from None
    return path


def fetch(url: str | PurePath, cache: Path | None = None) -> Path:
    """Fetches a file or a folder from a store, or as much of it as has changed.

    Args:
      url: Its URL; a pattern with wildcards gives a folder of the files that it matches.
      cache: Folder of the local copies; default: the cache folder.

    Returns:
      The local copy.

    Raises:
      UserError: If it is not there, or cannot be read.
    """
    store, place = open_store(url)
    text = written_url(url)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    copy = (cache or cache_folder(None)) / "buckets" / key / PurePath(place).name
    with store_errors(text, "read"):
        found = listed(store, place)
        if not found:
            raise UserError(f"{text}: there is nothing at this address")
        if list(found) == [""]:
            root, folder, found = place.rpartition("/")[0], copy.parent, {copy.name: found[""]}
        else:
            root, folder = _root(place), copy
        update(store, root, folder, found)
    return copy


def _root(place: str) -> str:
    """Returns the folder that a place is, or that is above all its wildcards."""
    signs = [place.index(sign) for sign in "*?[" if sign in place]
    return place[: min(signs)].rpartition("/")[0] if signs else place


def listed(store: Any, place: str) -> dict[str, str]:
    """Lists the objects at a place, relative name ↦ version; "" is the place itself.

    Raises:
      UserError: For a name that would lead out of a local copy.
    """
    # Clients remember listings; another process may have written since.
    store.invalidate_cache()
    root = _root(place)
    if root != place:
        details = {path: store.info(path) for path in store.glob(place)}
    else:
        try:
            # Not isfile, for which a store that does not answer holds no such file.
            about = store.info(place)
        except FileNotFoundError:
            return {}
        if about["type"] == "file":
            return {"": _version(about)}
        details = store.find(place, detail=True)
    found = {
        path[len(root) :].lstrip("/"): _version(info)
        for path, info in details.items()
        # An object named like a folder is how some tools make empty ones.
        if info["type"] == "file" and not path.endswith("/")
    }
    for name in found:
        if ".." in PurePath(name).parts:
            raise UserError(f"{place}: holds an object named {name!r}, which leads out of it")
    return found


def _version(info: dict[str, Any]) -> str:
    marks = [str(info[name]) for name in _VERSIONS if info.get(name) is not None]
    return f"{info['size']} {marks[0] if marks else ''}"


def update(store: Any, root: str, folder: Path, found: dict[str, str]) -> None:
    """Makes a local folder hold the objects that were found, in the versions that were.

    Args:
      store: The store.
      root: What the names are relative to.
      folder: The local folder.
      found: As `listed` returns it.
    """
    kept = folder / LISTING
    before = _read_listing(kept)
    for name in before.keys() - found.keys():
        (folder / name).unlink(missing_ok=True)
    for name, version in found.items():
        target = folder / name
        if before.get(name) == version and target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, "wb") as file, store.open(f"{root}/{name}", "rb") as source:
            shutil.copyfileobj(source, file, 2**22)
    with replacing(kept) as file:
        json.dump(found, file, indent=1)


def _read_listing(path: Path) -> dict[str, str]:
    """Reads what a local copy was made of; a damaged listing means that all is fetched anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Present(NamedTuple):
    """A folder in a store, as far as what may replace it needs to know.

    Attributes:
      names: The first parts of the names of its objects.
      content: Text of one of them, or None if it is not there.
    """

    names: set[str]
    content: str | None


def read_names(url: str | PurePath, member: str) -> Present | None:
    """Lists a folder in a store, and reads one of its files; None if nothing is there.

    Args:
      url: The folder.
      member: Name of the file.

    Raises:
      UserError: If the store cannot be read.
    """
    store, place = open_store(url)
    with store_errors(written_url(url), "read"):
        found = listed(store, place)
        if not found:
            return None
        content = store.cat_file(f"{place}/{member}").decode() if member in found else None
    return Present({name.partition("/")[0] for name in found}, content)


def send(folder: Path, url: str | PurePath, last: Sequence[str]) -> None:
    """Sends a folder to a store, in the place of what is there.

    Args:
      folder: The local folder.
      url: Where to.
      last: Names of the files without which the folder does not count, sent last and in this order.

    Raises:
      UserError: If the store refuses, or does not answer.
    """
    store, place = open_store(url)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    with store_errors(written_url(url), "written"):
        before = listed(store, place)
        for name in last:
            if name in before:
                store.rm_file(f"{place}/{name}")
        for name in [*(name for name in names if name not in last), *last]:
            put(store, folder / name, f"{place}/{name}")
        for name in before.keys() - {*names, *last}:
            store.rm_file(f"{place}/{name}")


def put(store: Any, file: Path, target: str) -> None:
    """Uploads a file, and checks that the store has all of it.

    Args:
      store: The store.
      file: The file here.
      target: Its path there.

    Raises:
      OSError: If it has not.
    """
    store.put_file(str(file), target)
    store.invalidate_cache(target.rpartition("/")[0])
    size = store.info(target)["size"]
    if size != file.stat().st_size:
        raise OSError(f"{target} has {size} bytes there, and {file.stat().st_size} here")


@contextmanager
def store_errors(url: str, what: str) -> Iterator[None]:
    """Turns errors of a store within the block into one line that names it.

    Args:
      url: The address, for the message.
      what: What cannot be done with it.

    Raises:
      UserError: For any of them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = str(error).strip().partition(os.linesep)[0] or type(error).__name__
        raise UserError(
            f"{url}: cannot be {what}: {first}; check the address, your access to it and the "
            "network, and run the same command again"
        ) from error

"""Tells URLs from paths, so that no bucket is taken for a folder.

`Path("gs://bucket/run")` is the relative path `gs:/bucket/run`: code that means to write to the
bucket makes a local folder named `gs:` and fills it, without an error.
"""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from jaxdpo.errors import UserError

# One slash is what pathlib leaves of the two. A Windows drive has a single letter.
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+\S*")
_PAGES = ("http", "https")


def scheme_of(path: str | PurePath) -> str | None:
    """Returns the scheme of a URL in lower case, or None for a path.

    >>> scheme_of("gs://bucket/run"), scheme_of("runs/first"), scheme_of("org/name:default:train")
    ('gs', None, None)
    """
    found = _URL.fullmatch(str(path))
    return found[1].lower() if found else None


def written_url(url: str | PurePath) -> str:
    """Returns a URL with the two slashes of which pathlib drops one.

    >>> written_url(PurePath("gs://bucket/run"))
    'gs://bucket/run'
    """
    return re.sub(r"^([^:]+):/(?!/)", r"\1://", str(url))


def refuse_url(path: str | PurePath, field: str = "") -> None:
    """Refuses a URL where only a local path is used.

    Args:
      path: What a user named.
      field: The field that it was given in, for the message.

    Raises:
      UserError: If it is a URL.
    """
    scheme = scheme_of(path)
    if scheme is None:
        return
    shown = written_url(path)
    where = f"{field}: " if field else ""
    if scheme == "file":
        raise UserError(f"{where}{shown}: name the path itself, without file://")
    if scheme in _PAGES:
        raise UserError(f"{where}{shown}: is a web address; download it, and name the local copy")
    raise UserError(
        f"{where}{shown}: a {scheme}:// address cannot be used here; name a local folder or file, "
        "or one on a file system that is mounted from the bucket"
    )


def refuse_urls_in(config: BaseModel, prefix: str = "") -> None:
    """Refuses every bucket address in fields of a configuration that take local paths only.

    Web addresses pass, because fields of servers hold them.

    Args:
      config: The configuration.
      prefix: Text before the names of its fields in messages.

    Raises:
      UserError: Naming the field and its value.
    """
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("bucket"):
            continue
        if isinstance(value, BaseModel):
            refuse_urls_in(value, f"{prefix}{name}.")
            continue
        for text in _texts(value):
            if scheme_of(text) not in (None, *_PAGES):
                refuse_url(text, f"{prefix}{name}")


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a value: of a mapping its keys too, as data sources may be."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)

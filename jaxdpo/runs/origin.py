"""The origin of the model that a run started from: its name, its licence, and what came before."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from huggingface_hub import try_to_load_from_cache

from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_config import ADAPTER_CONFIG
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import member, read_json

# Names on the Hub; a part never begins with a dot or a dash, unlike in relative paths.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Data may be followed by a configuration and a split.
_DATASET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)*")
_FILES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".gz", ".zst", ".jinja")
_LICENCE = re.compile(r"[\w.+-]{1,96}")
_FRONT = re.compile(r"---\s*\n(.*?\n)---", re.DOTALL)
# In characters. The front matter of a card is at its beginning, and is short.
_READ = 2**20
# A card could name itself, or two cards one another.
_MOST_PARENTS = 8


@dataclass(frozen=True)
class Origin:
    """The model that a training run started from.

    Attributes:
      name: Name on the Hub, or the folder's name without its place.
      hub_id: The nearest model on the Hub: itself, or what it was trained from; None if unknown.
      parents: Names of the models that it was trained from by its card, oldest first.
      licence: The fields of the Hub that state its licence; empty if unknown.
    """

    name: str
    hub_id: str | None
    parents: tuple[str, ...]
    licence: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Returns what `to_json` wrote."""
        return cls(**{**fields, "parents": tuple(fields["parents"])})


def is_hub_id(name: Any) -> bool:
    """Tells whether a value has the form `org/name`."""
    return isinstance(name, str) and bool(_HUB_ID.fullmatch(name))


def is_on_hub(path: str) -> bool:
    """Tells whether a path is a name on the Hub, and no file or folder that is here."""
    is_name = _DATASET.fullmatch(path) and is_hub_id(path.split(":")[0])
    return bool(is_name) and not path.endswith(_FILES) and not Path(path).exists()


def hub_datasets(paths: Sequence[str]) -> list[str]:
    """Returns the data sets on the Hub among the paths of data, without configuration and split."""
    return list(dict.fromkeys(path.split(":")[0] for path in paths if is_on_hub(path)))


def read_origin(path: str, folder: Path | None) -> Origin:
    """Reads the origin of a base model from its card, where one is at hand without the network.

    Args:
      path: `model.path` of the run.
      folder: The folder that it names; None if it is a name on the Hub, or the folder is gone.
    """
    on_hub = folder is None and is_hub_id(path)
    card = _front_matter(path, folder)
    parents = _parents(path, folder)
    # Older versions of transformers keep here from where the weights were loaded.
    loaded = None if folder is None else _json(folder, "config.json").get("_name_or_path")
    known = [path] if on_hub else [*reversed(parents), loaded]
    return Origin(
        name=path if on_hub else (folder or Path(path)).name,
        hub_id=next((name for name in known if is_hub_id(name)), None),
        parents=tuple(name if is_hub_id(name) else Path(name).name for name in parents),
        licence=_licence(card),
    )


def folder_of(path: str) -> Path | None:
    """Returns the folder at a path, or None if there is none."""
    if path.startswith("@"):
        try:
            return find_folder(path)
        except UserError:
            return None
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def _parents(path: str, folder: Path | None) -> list[str]:
    """Follows the cards from a model to the models before it; returns the oldest first."""
    chain: list[str] = []
    # Upwards, a card at a time: each names the model that it was made from and nothing further.
    while len(chain) < _MOST_PARENTS:
        parent = _front_matter(path, folder).get("base_model")
        if isinstance(parent, list) and len(parent) == 1:
            parent = parent[0]
        if parent is None and folder is not None:
            parent = _json(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
        # A merge of several models has no single line of descent.
        if not isinstance(parent, str) or not parent or parent in (path, *chain):
            break
        chain.append(parent)
        path, folder = parent, folder_of(parent)
    return chain[::-1]


def _front_matter(path: str, folder: Path | None) -> dict[str, Any]:
    """Reads the fields at the head of a model's card; none where there is no readable card."""
    try:
        if folder is not None:
            file: Any = member(folder, "README.md")
        else:
            file = try_to_load_from_cache(path, "README.md") if is_hub_id(path) else None
        if not isinstance(file, str | Path):
            return {}
        with open(file, encoding="utf-8", errors="replace") as opened:
            return split_card(opened.read(_READ))[0]
    except (OSError, UserError):
        return {}


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Returns the fields at the head of a card's text, and what follows them.

    A card may be anyone's, and a model is not refused for what stands in it: where the fields can't
    be read there are none, and all of the card follows.
    """
    found = _FRONT.match(card)
    try:
        fields = yaml.safe_load(found[1]) if found else None
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}, card
    if found is None or not isinstance(fields, dict):
        return {}, card
    return fields, card[found.end() :]


def _licence(card: dict[str, Any]) -> dict[str, Any]:
    """Returns the licence's fields of a card: `other` has a name and a link beside it."""
    stated = card.get("license")
    names = stated if isinstance(stated, list) else [stated]
    if not names or not all(isinstance(each, str) and _LICENCE.fullmatch(each) for each in names):
        return {}
    fields = {"license": stated}
    if isinstance(card.get("license_name"), str):
        fields["license_name"] = card["license_name"]
    # A relative link leads to a file of the base model's repository, which is not copied.
    link = card.get("license_link")
    if isinstance(link, str) and link.startswith(("https://", "http://")):
        fields["license_link"] = link
    return fields


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(folder, name)
    except UserError:
        return {}

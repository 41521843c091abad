"""Keeps, in a run folder, the model that the run started from, so that the folder opens anywhere.

base/
  config.json, generation_config.json, tokenizer files   of that model, without its weights
  template.jinja    the chat template of `data.chat_template`, if the run has one
  origin.json       {"directory": …}: where the run was started, which relative paths belong to
"""

import json
import os
from pathlib import Path
from typing import Any

from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.chat import Chat, load_chat
from jaxdpo.errors import UserError
from jaxdpo.hub.export import exporting
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import read_config, read_json
from jaxdpo.hub.policy import Policy
from jaxdpo.hub.write import write_json, write_texts
from jaxdpo.storage.buckets import is_bucket

BASE = "base"
_TEMPLATE, _ORIGIN = "template.jinja", "origin.json"


def keep_base(folder: Path, config: RunConfig, policy: Policy) -> None:
    """Writes what a run folder keeps of the model that the run starts from, if it is not there.

    Args:
      folder: The run folder.
      config: The run.
      policy: The model.
    """
    if (folder / BASE / _ORIGIN).exists():
        return
    with exporting(folder / BASE) as temporary:
        write_json(temporary / "config.json", dict(policy.hf_config))
        write_json(temporary / "generation_config.json", dict(policy.generation_config or {}))
        policy.chat.tokenizer.save_pretrained(temporary)
        if config.data.chat_template is not None:
            text = Path(config.data.chat_template).expanduser().read_text(encoding="utf-8")
            write_texts(temporary, {_TEMPLATE: text})
        write_json(temporary / _ORIGIN, {"directory": os.getcwd()})


def has_base(folder: Path) -> bool:
    """Tells whether a run folder holds what `keep_base` writes."""
    return (folder / BASE / _ORIGIN).exists()


def base_chat(folder: Path, chat_template: str | None) -> Chat:
    """Loads the tokenizer that a run folder keeps.

    Args:
      folder: The run folder.
      chat_template: Jinja file used in place of the run's template.
    """
    kept = folder / BASE / _TEMPLATE
    own = str(kept) if kept.exists() else None
    return load_chat(str(folder / BASE), chat_template or own)


def base_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Reads config.json and generation_config.json of the model that a run started from."""
    return read_config(folder / BASE), read_json(folder / BASE, "generation_config.json") or None


def find_base(folder: Path, path: str) -> str:
    """Finds the model that a run started from, for its weights.

    A relative path belongs to the directory that the run was started in, wherever the run folder
    is opened from.

    Args:
      folder: The run folder.
      path: `model.path` of the run.

    Raises:
      UserError: If the run's base model is a folder that is not there.
    """
    if is_bucket(path):
        return path
    if path.startswith("@"):
        return str(find_folder(path))
    given = Path(path).expanduser()
    looked = [given]
    if not given.is_absolute() and has_base(folder):
        origin = json.loads((folder / BASE / _ORIGIN).read_text(encoding="utf-8"))["directory"]
        looked = [Path(origin) / given, given]
    for place in looked:
        if place.exists():
            return str(place)
    # A name on the Hub has two parts and no dot in front; what else is missing was a folder.
    if not given.is_absolute() and path.count("/") == 1 and not path.startswith((".", "~")):
        return path
    raise UserError(
        f"{folder}: holds adapters alone, and their base model is needed, which is not at "
        f"{' or '.join(map(str, looked))}; put it there, or open the exported model of a finished "
        f"run, {folder / 'model'}"
    )

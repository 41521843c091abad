"""Keeps, in a run folder, the model that the run started from, so that the folder opens anywhere.

base/
  config.json, generation_config.json, tokenizer files   of that model, without its weights
  template.jinja    the chat template of `data.chat_template`, if the run has one
  origin.json       {"directory": …, "origin": …, "datasets": …}: where the run was started, which
                    relative paths belong to; what the model's card says of its licence and of the
                    models before it; and the data that is on the Hub
"""

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
from jaxdpo.model.digest import weights_digest
from jaxdpo.runs.origin import Origin, folder_of, hub_datasets, read_origin
from jaxdpo.storage.buckets import is_bucket

BASE = "base"
_TEMPLATE, _ORIGIN = "template.jinja", "origin.json"
# Digits of a digest in messages.
_SHOWN = 12


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
        # Without the weights: what trained is in the checkpoints, and a base may be huge.
        write_json(temporary / "config.json", dict(policy.hf_config))
        write_json(temporary / "generation_config.json", dict(policy.generation_config or {}))
        policy.chat.tokenizer.save_pretrained(temporary)
        # The template is a file of the machine where the run began; a copy goes with the folder.
        if config.data.chat_template is not None:
            text = Path(config.data.chat_template).expanduser().read_text(encoding="utf-8")
            write_texts(temporary, {_TEMPLATE: text})
        origin = read_origin(config.model.path, folder_of(config.model.path))
        kept = {
            "directory": os.getcwd(),
            "origin": origin.to_json(),
            "datasets": hub_datasets(list(config.data.weights())),
        }
        write_json(temporary / _ORIGIN, kept)


def has_base(folder: Path) -> bool:
    """Tells whether a run folder holds what `keep_base` writes."""
    return (folder / BASE / _ORIGIN).exists()


def kept_origin(folder: Path) -> tuple[Origin, list[str]] | None:
    """Reads the origin of the model that a run started from, and the data sets on the Hub.

    Returns:
      None where the run folder does not keep it, as one of an earlier version.
    """
    if not has_base(folder):
        return None
    kept = read_json(folder / BASE, _ORIGIN)
    if "origin" not in kept:
        return None
    return Origin.from_json(kept["origin"]), list(kept["datasets"])


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
    # An absolute path means the same from everywhere.
    looked = [given]
    if not given.is_absolute() and has_base(folder):
        origin = read_json(folder / BASE, _ORIGIN)["directory"]
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


def check_base(what: Path, found: str, policy: Policy, recorded: str | None) -> None:
    """Refuses a base model that is not the one that adapters were trained on.

    A path may lead to another model than when the run began: a newer one of the same name, or one
    that stands in the same place of another machine.

    Args:
      what: The run or the checkpoint, for the message.
      found: Where the base model was found.
      policy: That model, in the dtype and number format of the run.
      recorded: The digest that the run recorded, or None if it recorded none.

    Raises:
      UserError: If its weights are others.
    """
    if recorded is None:
        return
    digest = weights_digest(policy.params)
    if digest != recorded:
        raise UserError(
            f"{what}: its adapters were trained on other weights than those that are at {found} "
            f"now (digest {digest[:_SHOWN]}, recorded {recorded[:_SHOWN]}); put that model back"
        )

"""Finds model folders: on this machine, of an installed package, or on the Hugging Face Hub."""

from pathlib import Path

from jaxdpo.errors import UserError
from jaxdpo.hub.gguf.file import is_gguf
from jaxdpo.hub.gguf.installed import installed_folder
from jaxdpo.storage.buckets import fetch, is_bucket
from jaxdpo.storage.urls import refuse_url

# Weights under other names (Mistral's consolidated.safetensors, original/) are copies of the same.
# The card says what the licence is, which the cards of models trained from it repeat.
_DOWNLOADED = [
    *("*.json", "model*.safetensors", "adapter*.safetensors", "tokenizer*", "*.jinja"),
    "README.md",
]


def find_folder(path: str | Path, weights: bool = True, revision: str | None = None) -> Path:
    """Finds the model folder at a path, of an installed model, or of `org/name` on the Hub.

    Args:
      path: The folder, here or in a bucket; `@smollm2` for a model that a package has installed;
        or `org/name`, which is downloaded from the Hugging Face Hub.
      weights: Whether weights are downloaded too.
      revision: Branch, tag or commit on the Hub; None for the newest. A folder here has none.

    Raises:
      UserError: If there is none of them, or the path is a URL of something else than a
        bucket.
    """
    if is_bucket(path):
        return fetch(path)
    refuse_url(path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    name = str(path)
    if name.startswith("@"):
        return installed_folder(name)
    if is_gguf(folder):
        raise UserError(
            f"{name}: a GGUF file; make a model folder of it with python -m jaxdpo.convert "
            f"source={name} target=FOLDER"
        )
    # A misspelt path must not become a request to the Hub.
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such folder; name a model folder, or org/name on the Hub")
    import huggingface_hub

    try:
        # Its errors of the network, of missing models and of refused access are OSErrors.
        snapshot = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=_DOWNLOADED,
            ignore_patterns=["*/*"] if weights else ["*/*", "*.safetensors"],
        )
    except (OSError, huggingface_hub.errors.HFValidationError) as error:
        which = "that name" if revision is None else f"that name at revision {revision}"
        raise UserError(
            f"{name}: no such folder here, and the Hub did not give a model of {which}: {error}"
        ) from error
    return Path(snapshot)

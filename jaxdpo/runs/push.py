"""Puts models on the Hub: the command `jaxdpo push`, and the end of a run with `export.hub`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.cli.console import Reporter
from jaxdpo.cli.ending import command_line
from jaxdpo.config import RunConfig
from jaxdpo.errors import UserError
from jaxdpo.hub.push import check_repo, push
from jaxdpo.runs.folder import RunFolder
from jaxdpo.training.trackers.opening import check_trackers


class PushConfig(BaseModel):
    """The model, and its place on the Hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(description="model folder, or run folder")
    repo: str = Field(description="repository on the Hub: org/name")
    private: bool = Field(default=True, description="make it private, if it is not there yet")
    message: str | None = Field(default=None, description="of the commit")


def push_model(config: PushConfig) -> str:
    """Uploads a model; returns the address of the commit.

    Args:
      config: The model, and its place on the Hub.

    Raises:
      UserError: If it is no model, or the Hub refuses it or cannot be reached.
    """
    reporter = Reporter()
    with reporter.phase(f"uploading {config.folder} to {config.repo}"):
        folder = Path(config.folder).expanduser()
        url = push(folder, config.repo, config.private, config.message)
    reporter.say(f"uploaded: {url}")
    return url


def check_destinations(config: RunConfig) -> None:
    """Refuses a run that could not report or export to where it is to.

    Raises:
      UserError: For a tracker that is not installed, and a Hub that nobody is logged in to.
    """
    check_trackers(config.training.report_to)
    if config.export.hub is not None:
        check_repo(config.export.hub)


def push_run(config: RunConfig, folder: RunFolder, reporter: Reporter) -> None:
    """Uploads the model of a finished run, if `export.hub` asks for that.

    Args:
      config: The run.
      folder: Its folder.
      reporter: Says where the model is, or how it is uploaded once the Hub can be reached.
    """
    repo = config.export.hub
    if repo is None or not folder.writes:
        return
    try:
        with reporter.phase(f"uploading the model to {repo}"):
            url = push(folder.path, repo)
    except UserError as error:
        # The run is finished and its model is on disk, whatever the network does.
        again = command_line("push", folder=folder.path, repo=repo)
        reporter.say(f"warning: {error}. To upload it later: {again}")
        return
    reporter.say(f"uploaded: {url}")

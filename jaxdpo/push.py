"""`python -m jaxdpo.push FOLDER org/name`: a model on the Hugging Face Hub."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="push",
    summary="put a model, or the model of a run, on the Hugging Face Hub",
    synopsis=("FOLDER org/name [private=false] [message=…]",),
    about="""
Uploads a model folder, or the model of a run folder, with its card. A repository that is not there
is made, and is private unless private=false. The same command again goes on where it stopped.
""",
    positionals=("folder", "repo"),
)


def main(arguments: list[str]) -> None:
    """Uploads as the arguments say; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.runs.push import PushConfig, push_model
    given = COMMAND.read(arguments, PushConfig)
    push_model(load_settings(PushConfig, given.file, given.overrides))


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

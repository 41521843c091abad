"""`python -m jaxdpo.inspect DATA [field=value …]`: what is wrong with preference data."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="inspect",
    summary="find what is wrong with preference data, and clean it",
    synopsis=("DATA [field=value …]",),
    about="""
Says what is wrong with preference data, and writes a report. Bad lines are counted, not fatal.
Fields of data.… and batch.… are those of a run.
""",
    positionals=("data",),
)


def main(arguments: list[str]) -> str:
    """Inspects as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.inspection.config import InspectConfig
        from jaxdpo.runs.inspection import inspect
    given = COMMAND.read(arguments, InspectConfig)
    config = load_settings(InspectConfig, given.file, given.overrides)
    inspect(config)
    fields = {"model": config.model or "MODEL", "data": config.write or config.data.name()}
    return command_line("train", **fields, training__folder="runs/first")


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

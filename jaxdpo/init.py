"""`python -m jaxdpo.init dpo.yaml section.field=value …`: a settings file to begin with."""

import sys

from jaxdpo.cli.command import Command, run_command
from jaxdpo.printable import show

COMMAND = Command(
    name="init",
    summary="write a settings file to begin with: every field, its meaning and its default",
    synopsis=("FILE.yaml [section.field=value …]",),
    about="""
Writes a settings file for jaxdpo train with every field, its meaning and its default as comments,
and the values that are given here. A file that is there already is not written over.
""",
)


def main(arguments: list[str]) -> None:
    """Writes the file that the arguments name; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from pathlib import Path

        from jaxdpo.cli.settings import given_values
        from jaxdpo.cli.settings_file import settings_file
        from jaxdpo.config import RunConfig
        from jaxdpo.errors import UserError
        from jaxdpo.storage.files import replacing
    given = COMMAND.read(arguments, RunConfig)
    if given.file is None:
        raise UserError("which file? Name one: jaxdpo init dpo.yaml")
    path = Path(given.file)
    if path.exists():
        raise UserError(f"{path}: is there already; name another file")
    text = settings_file(RunConfig, given_values(RunConfig, given.overrides))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(f"# jaxdpo train {path}\n\n{text}")
    show(f"{path}: written; set what is required, then: jaxdpo train {path}")


if __name__ == "__main__":
    sys.exit(run_command(main))

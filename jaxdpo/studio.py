"""`python -m jaxdpo.studio models=… data=… folder=…`: a page on which people judge answers."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="studio",
    summary="serve a page on which people choose, edit and judge answers",
    synopsis=("[CONFIG.yaml] models=[…] [data=PROMPTS] [folder=feedback] [field=value …]",),
    about="""
Serves a page to talk to models, review rows, see what was gathered and compare models. Every act is
kept in the folder at once; `jaxdpo collect events FOLDER -o pairs.jsonl` makes pairs of it. Needs
pip install 'jaxdpo[studio]'.
""",
)


def main(arguments: list[str]) -> None:
    """Serves as the arguments say; `--help` shows every field.

    Raises:
      UserError: If the extra is not installed, or for whatever the user can fix.
    """
    with COMMAND.loading(arguments):
        from jaxdpo.annotation.config import StudioConfig
        from jaxdpo.cli.settings import load_settings
    given = COMMAND.read(arguments, StudioConfig)
    config = load_settings(StudioConfig, given.file, given.overrides)
    try:
        from jaxdpo.annotation.run import studio
    except ModuleNotFoundError as missing:
        if missing.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        from jaxdpo.errors import UserError

        raise UserError(f"studio: needs {missing.name}; pip install 'jaxdpo[studio]'") from missing
    studio(config)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

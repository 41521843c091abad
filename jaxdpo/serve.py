"""`python -m jaxdpo.serve model=…`: an OpenAI-compatible server for models."""

import sys

from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="serve",
    summary="serve models to OpenAI's clients",
    synopsis=(
        "[CONFIG.yaml] model=… [field=value …]",
        "models='{base: …, dpo: …}' [field=value …]",
    ),
    about="""
Answers requests as OpenAI's interface has them, at http://127.0.0.1:8000/v1 by default. A model is
a folder, an adapter folder, org/name, a run folder, or one of a run's checkpoints; adapters of one
base hold it in memory once. Requests join a running batch as they come. SIGTERM and Ctrl-C let the
answers under way finish.
""",
    positionals=("model",),
)


def main(arguments: list[str]) -> None:
    """Serves as the arguments say; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.errors import UserError
        from jaxdpo.serving.config import ServeConfig
    given = COMMAND.read(arguments, ServeConfig)
    config = load_settings(ServeConfig, given.file, given.overrides)
    try:
        from jaxdpo.serving.run import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise UserError("serve needs FastAPI and uvicorn; pip install 'jaxdpo[serve]'") from None
    serve(config)


if __name__ == "__main__":
    sys.exit(run_command(main))

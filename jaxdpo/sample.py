"""`python -m jaxdpo.sample model=… data=… out=…`: a model's answers to prompts."""

import sys
from pathlib import Path

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="sample",
    summary="write a model's answers to prompts, or the best of several",
    synopsis=("[CONFIG.yaml] model=… data=PROMPTS out=ANSWERS.jsonl [field=value …]",),
    about="""
Writes a model's answers to prompts, one a line. The same command again continues one that was cut
off. A model is a folder, an adapter folder, org/name, a run folder, one of a run's checkpoints, or
http://host:port/v1#name for an OpenAI-compatible server (key from OPENAI_API_KEY).
""",
)


def main(arguments: list[str]) -> str | None:
    """Samples as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.generation.server import is_server
        from jaxdpo.rounds.sample import SampleConfig, sample
    given = COMMAND.read(arguments, SampleConfig)
    config = load_settings(SampleConfig, given.file, given.overrides)
    sample(config)
    if is_server(config.model):
        return None  # A server's model cannot be scored here.
    scores = str(Path(config.out).with_suffix(".scores.jsonl"))
    return command_line("score", model=config.model, data=config.out, out=scores)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

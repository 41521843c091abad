"""`python -m jaxdpo.sample model=… data=… out=…`: a model's answers to prompts."""

import sys

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


def main(arguments: list[str]) -> None:
    """Samples as the arguments say; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.rounds.sample import SampleConfig, sample
    given = COMMAND.read(arguments, SampleConfig)
    sample(load_settings(SampleConfig, given.file, given.overrides))


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

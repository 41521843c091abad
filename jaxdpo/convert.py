"""`python -m jaxdpo.convert source=… target=…`: models, runs and checkpoints, in other formats."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="convert",
    summary="convert a model, an adapter, a run or a checkpoint to another format",
    synopsis=("source=PATH target=FOLDER [field=value …] [--check]",),
    about="""
Writes a model folder from a model folder, a PEFT adapter folder, org/name on the Hub, a run folder,
one of a run's checkpoints, a folder that this command wrote with format=orbax, or a GGUF file of
the llama architecture. With format=gguf it writes such a file, for llama.cpp and ollama.
--check compares the source with the manifest of its export, reads what was written, and compares
every tensor.
""",
)


def main(arguments: list[str]) -> str:
    """Converts as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.runs.convert import ConvertConfig, convert
    given = COMMAND.read(arguments, ConvertConfig)
    config = load_settings(ConvertConfig, given.file, given.overrides)
    convert(config)
    return command_line("sample", model=config.target, data="PROMPTS.jsonl", out="answers.jsonl")


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

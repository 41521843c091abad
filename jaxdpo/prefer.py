"""`python -m jaxdpo.prefer model=… data=… criteria=… folder=…`: pairs of a model's own answers."""

import sys
from pathlib import Path

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="prefer",
    summary="make preference pairs of a model's own answers, judged by criteria",
    synopsis=("[CONFIG.yaml] model=… data=PROMPTS criteria=… folder=… [field=value …]",),
    about="""
Answers prompts several times, judges the answers by criteria, and pairs the best with the worst.
The folder keeps generations.jsonl, judgements.jsonl and pairs.jsonl; the same command again
continues one that was cut off.
""",
)


def main(arguments: list[str]) -> str | None:
    """Makes pairs as the arguments say, and returns the next command; `--help` shows all fields."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.rounds.make_pairs import PairingConfig, prefer
    given = COMMAND.read(arguments, PairingConfig)
    config = load_settings(PairingConfig, given.file, given.overrides)
    prefer(config)
    fields = {"model": config.model, "data": f"{config.folder}/pairs.jsonl"}
    if not Path(fields["data"]).expanduser().exists():
        return None  # No two answers to a prompt differ, so there is nothing to train on.
    return command_line("train", **fields, training__folder=f"{config.folder}/run")


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

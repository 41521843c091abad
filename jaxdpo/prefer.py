"""`python -m jaxdpo.prefer model=… data=… criteria=… folder=…`: pairs of a model's own answers."""

import sys

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


def main(arguments: list[str]) -> None:
    """Makes pairs as the arguments say; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.rounds.make_pairs import PairingConfig, prefer
    given = COMMAND.read(arguments, PairingConfig)
    prefer(load_settings(PairingConfig, given.file, given.overrides))


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))

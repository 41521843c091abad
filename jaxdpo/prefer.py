"""`python -m jaxdpo.prefer model=… data=… criteria=… folder=…`: pairs of a model's own answers."""

import sys

from jaxdpo.cli.command import run_command
from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import load_settings, sections_text, split_arguments
from jaxdpo.data.reading.prompts import with_path
from jaxdpo.errors import UserError
from jaxdpo.rounds.make_pairs import PairingConfig, make_pairs, rate_rows

USAGE = """usage: python -m jaxdpo.prefer [CONFIG.yaml] model=… data=PROMPTS criteria=… folder=…

Answers prompts several times, judges the answers by criteria, and pairs the best with the worst.
The folder keeps generations.jsonl, judgements.jsonl and pairs.jsonl; the same command again
continues one that was cut off.
"""


def main(arguments: list[str]) -> None:
    """Makes pairs as the arguments say; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + sections_text(PairingConfig))
        return
    config = load_settings(PairingConfig, *split_arguments(with_path(arguments)))
    reporter = Reporter()
    paired = make_pairs(config, reporter)
    reporter.table("Answers that pass", ("criterion", "share"), rate_rows(paired.rates))
    reporter.say(paired.collected.summary())
    if paired.pairs is None:
        raise UserError(f"{config.folder}: no prompt has answers of which one is better")
    reporter.say(f"written: {paired.pairs}")


if __name__ == "__main__":
    sys.exit(run_command(main))

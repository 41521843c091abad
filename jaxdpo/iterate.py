"""`python -m jaxdpo.iterate model=… data=… criteria=… folder=…`: rounds of alignment."""

import sys

from jaxdpo.cli.command import run_command
from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import load_settings, sections_text, split_arguments
from jaxdpo.data.reading.prompts import with_path
from jaxdpo.rounds.iterate import RoundsConfig, iterate

USAGE = """usage: python -m jaxdpo.iterate [CONFIG.yaml] model=… data=PROMPTS criteria=… folder=…

In each round a model answers prompts, criteria judge the answers, the best and the worst make
pairs, and the model is trained on them. The same command again continues.
Fields of train.… are those of python -m jaxdpo.train.
"""


def main(arguments: list[str]) -> None:
    """Runs the rounds that the arguments ask for; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + sections_text(RoundsConfig))
        return
    config = load_settings(RoundsConfig, *split_arguments(with_path(arguments)))
    iterate(config, Reporter())


if __name__ == "__main__":
    sys.exit(run_command(main))

"""`python -m jaxdpo.train config.yaml section.field=value …`: align a model with DPO."""

import sys

from jaxdpo.command import run_command
from jaxdpo.config import help_text, load_config, split_arguments
from jaxdpo.run import fit
from jaxdpo.sharding import join_processes

USAGE = """usage: python -m jaxdpo.train [CONFIG.yaml] [section.field=value …]

Aligns a model with preference pairs by DPO and exports it in Hugging Face format.
The same command again continues a run that was cut off.
"""


def main(arguments: list[str]) -> None:
    """Trains as the arguments say; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + help_text())
        return
    config = load_config(*split_arguments(arguments))
    join_processes()
    fit(config)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""`python -m jaxdpo.train config.yaml section.field=value …`: align a model with DPO."""

import sys

from jaxdpo.cli.command import run_command
from jaxdpo.cli.settings import split_arguments
from jaxdpo.config import help_text, load_config
from jaxdpo.devices.sharding import join_processes
from jaxdpo.runs.fit import fit
from jaxdpo.runs.sweep import parse_at_once, parse_axes, sweep

USAGE = """usage: python -m jaxdpo.train [CONFIG.yaml] [section.field=value …]

Aligns a model with preference pairs by DPO and exports it in Hugging Face format.
The same command again continues a run that was cut off.
At the end, --sweep section.field=value,value … runs every combination of the values. With LoRA,
those that differ in loss.beta, optimizer.learning_rate and the like train at once; at_once=N limits
how many, where memory does.
"""


def main(arguments: list[str]) -> None:
    """Trains as the arguments say; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + help_text())
        return
    if "--sweep" in arguments:
        at = arguments.index("--sweep")
        at_once, rest = parse_at_once(arguments[at + 1 :])
        axes = parse_axes(rest)
        join_processes()
        sweep(arguments[:at], axes, at_once)
        return
    config = load_config(*split_arguments(arguments))
    join_processes()
    fit(config)


if __name__ == "__main__":
    sys.exit(run_command(main))

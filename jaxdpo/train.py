"""`python -m jaxdpo.train config.yaml section.field=value …`: align a model with DPO."""

import os
import sys

from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="train",
    summary="align a model with preference pairs by DPO, or fine-tune it on answers",
    synopsis=("[CONFIG.yaml] [section.field=value …]",),
    about="""
Aligns a model with preference pairs by DPO and exports it in Hugging Face format.
The same command again continues a run that was cut off.
At the end, --sweep section.field=value,value … runs every combination of the values. With LoRA,
those that differ in loss.beta, optimizer.learning_rate and the like train at once; at_once=N limits
how many, where memory does.
""",
    tail="--sweep",
)


def main(arguments: list[str]) -> str | None:
    """Trains as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.devices.cluster import find_cluster
        from jaxdpo.devices.supervisor import is_supervised, supervise

        # One of several processes is a child of this one, which imports no JAX.
        cluster = None if {"-h", "--help"} & set(arguments) else find_cluster(os.environ)
        if cluster is not None and not is_supervised():
            sys.exit(supervise(cluster))
        from jaxdpo.config import RunConfig, load_config
        from jaxdpo.runs.fit import fit
        from jaxdpo.runs.processes import joined
        from jaxdpo.runs.sweep import sweep_command
    given = COMMAND.read(arguments, RunConfig)
    if given.tail is not None:
        sweep_command(given)
        return None
    with joined(lambda: load_config(given.file, given.overrides)) as config:
        fit(config)
    folder = config.training.folder
    if config.loss.supervised:
        fields = {"data": "PROMPTS.jsonl", "criteria": "CRITERIA.yaml", "folder": f"{folder}-pairs"}
        return command_line("prefer", model=folder, **fields)
    compared = {"before": config.model.path, "after": folder, "data": "PROMPTS.jsonl"}
    out = f"{folder}/evaluation"
    return command_line("evaluate", **compared, criteria="CRITERIA.yaml", out=out)


if __name__ == "__main__":
    sys.exit(run_command(main))

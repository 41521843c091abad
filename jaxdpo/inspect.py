"""`python -m jaxdpo.inspect DATA [field=value …]`: what is wrong with preference data."""

import sys

from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="inspect",
    summary="find what is wrong with preference data, and clean it",
    synopsis=("DATA [field=value …]",),
    about="""
Says what is wrong with preference data, and writes a report. Bad lines are counted, not fatal.
Fields of data.… and batch.… are those of a run.
""",
    positionals=("data",),
)


def main(arguments: list[str]) -> None:
    """Inspects as the arguments say; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.inspection.config import InspectConfig
        from jaxdpo.inspection.run import inspect_data
    given = COMMAND.read(arguments, InspectConfig)
    config = load_settings(InspectConfig, given.file, given.overrides)
    findings = []
    if config.displacement and config.model is not None:
        # Weights and JAX are loaded for this alone: looking at data takes a second without.
        from jaxdpo.inspection.displacement import displacement_finding
        from jaxdpo.runs.displacement import displacing_pairs_of_data

        found = displacing_pairs_of_data(
            config.model, config.data, config.batch, config.displacement
        )
        sources, scores = zip(*found.pairs, strict=True)
        findings = [displacement_finding(sources, scores, found.median, found.scored)]
    inspect_data(config, more_findings=findings)


if __name__ == "__main__":
    sys.exit(run_command(main))

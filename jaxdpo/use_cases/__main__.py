"""`python -m jaxdpo.use_cases NAME [field=value …]`: the evidence that DPO works."""

import sys

from jaxdpo.cli.command import Command, run_command
from jaxdpo.printable import show

COMMAND = Command(
    name="use_cases",
    summary="make the evidence that DPO works: four tasks, from data to measured failures",
    synopsis=("NAME [field=value …]",),
    about="""
Makes a task's data, teaches a model on it, aligns the model by DPO, and measures both on TEST.
NAME is all, word_limit, highlight, hallucination or relevance.
The same command again continues.
At the end, --sweep section.field=value,value … runs DPO with every combination of the values, and
measures them on validation prompts and not on TEST.
""",
    positionals=("name",),
    tail="--sweep",
)


def main(arguments: list[str]) -> None:
    """Runs use cases as the arguments say.

    Raises:
      UserError: If there is no such use case.
    """
    with COMMAND.loading(arguments):
        from pathlib import Path

        from jaxdpo.cli.settings import load_settings
        from jaxdpo.errors import UserError, nearest
        from jaxdpo.runs.sweep import parse_axes
        from jaxdpo.use_cases.cases import CASES
        from jaxdpo.use_cases.config import UseCasesCommand, UseCasesConfig
        from jaxdpo.use_cases.pipeline import run_seed
        from jaxdpo.use_cases.report import write_report
        from jaxdpo.use_cases.sweep import sweep_use_case
    given = COMMAND.read(arguments, UseCasesCommand)
    asked = load_settings(UseCasesCommand, given.file, given.overrides)
    name, config = asked.name, UseCasesConfig(**asked.model_dump(exclude={"name"}))
    if name != "all" and name not in CASES:
        raise UserError(
            f"{name}: there is no such use case{nearest(name, [*CASES, 'all'])}; there are "
            f"{', '.join(CASES)}, and all"
        )
    names = list(CASES) if name == "all" else [name]
    if given.tail is not None:
        axes = parse_axes(given.tail)
        for each in names:
            show(sweep_use_case(CASES[each], config, axes))
        return
    results = {
        each: [run_seed(CASES[each], config, seed) for seed in config.seeds] for each in names
    }
    folder = Path(config.folder) if name == "all" else Path(config.folder) / name
    show(write_report(folder, CASES, results))
    show(f"{folder}: results.md, results.png and results.svg")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""`python -m jaxdpo.use_cases NAME [field=value …]`: the evidence that DPO works."""

import sys
from pathlib import Path

from jaxdpo.cli.command import run_command
from jaxdpo.cli.settings import fields_text, load_settings
from jaxdpo.errors import UserError, nearest
from jaxdpo.runs.sweep import parse_axes
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.pipeline import run_seed
from jaxdpo.use_cases.report import write_report
from jaxdpo.use_cases.sweep import sweep_use_case

USAGE = f"""usage: python -m jaxdpo.use_cases NAME [field=value …]

Makes a task's data, teaches a model on it, aligns the model by DPO, and measures both on TEST.
NAME is all or one of {", ".join(CASES)}.
The same command again continues.
At the end, --sweep section.field=value,value … runs DPO with every combination of the values, and
measures them on validation prompts and not on TEST.
"""


def main(arguments: list[str]) -> None:
    """Runs use cases as the arguments say."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + fields_text(UseCasesConfig))
        return
    name, *overrides = arguments
    if name != "all" and name not in CASES:
        raise UserError(
            f"{name}: there is no such use case{nearest(name, [*CASES, 'all'])}; there are "
            f"{', '.join(CASES)}, and all"
        )
    at = overrides.index("--sweep") if "--sweep" in overrides else len(overrides)
    config = load_settings(UseCasesConfig, None, overrides[:at])
    names = list(CASES) if name == "all" else [name]
    if at < len(overrides):
        axes = parse_axes(overrides[at + 1 :])
        for each in names:
            print(sweep_use_case(CASES[each], config, axes))
        return
    results = {
        each: [run_seed(CASES[each], config, seed) for seed in config.seeds] for each in names
    }
    folder = Path(config.folder) if name == "all" else Path(config.folder) / name
    print(write_report(folder, CASES, results))
    print(f"{folder}: results.md, results.png and results.svg")


if __name__ == "__main__":
    sys.exit(run_command(main))

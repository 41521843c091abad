"""`python -m jaxdpo.use_cases NAME [field=value …]`: the evidence that DPO works."""

import sys
from pathlib import Path

from jaxdpo.command import run_command
from jaxdpo.errors import UserError, nearest
from jaxdpo.settings import fields_text, load_settings
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.pipeline import run_seed
from jaxdpo.use_cases.report import write_report

USAGE = f"""usage: python -m jaxdpo.use_cases NAME [field=value …]

Makes a task's data, teaches a model on it, aligns the model by DPO, and measures both on TEST.
NAME is all or one of {", ".join(CASES)}.
The same command again continues.
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
    config = load_settings(UseCasesConfig, None, overrides)
    names = list(CASES) if name == "all" else [name]
    results = {
        each: [run_seed(CASES[each], config, seed) for seed in config.seeds] for each in names
    }
    folder = Path(config.folder) if name == "all" else Path(config.folder) / name
    print(write_report(folder, CASES, results))
    print(f"{folder}: results.md, results.png and results.svg")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""`python -m jaxdpo.use_cases NAME|all [field=value …]`: the evidence that DPO works."""

import sys
from pathlib import Path

import yaml
from pydantic import ValidationError

from jaxdpo.command import run_command
from jaxdpo.errors import UserError, nearest
from jaxdpo.use_cases.cases import CASES
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.pipeline import run_seed
from jaxdpo.use_cases.report import write_report

USAGE = f"""usage: python -m jaxdpo.use_cases NAME [field=value …]

Makes a task's data, teaches a model on it, aligns the model by DPO, and measures both on TEST.
NAME is all or one of {", ".join(CASES)}. The same command again continues.
"""


def main(arguments: list[str]) -> None:
    """Runs use cases as the arguments say."""
    if not arguments or {"-h", "--help"} & set(arguments):
        fields = UseCasesConfig.model_fields.items()
        shown = (f"  {name}={field.default}\n      {field.description}" for name, field in fields)
        print(USAGE + "\n" + "\n".join(shown))
        return
    name, *overrides = arguments
    if name != "all" and name not in CASES:
        raise UserError(
            f"{name}: there is no such use case{nearest(name, [*CASES, 'all'])}; there are "
            f"{', '.join(CASES)}, and all"
        )
    config = parse(overrides)
    names = list(CASES) if name == "all" else [name]
    results = {
        each: [run_seed(CASES[each], config, seed) for seed in config.seeds] for each in names
    }
    folder = Path(config.folder) / name if name != "all" else Path(config.folder)
    print(write_report(folder, CASES, results))
    print(f"{folder}: results.md, results.png and results.svg")


def parse(overrides: list[str]) -> UseCasesConfig:
    """The configuration that `field=value` arguments say.

    Raises:
      UserError: For a mistake in them.
    """
    values = {}
    for argument in overrides:
        field, equals, text = argument.partition("=")
        if not equals or field not in UseCasesConfig.model_fields:
            known = list(UseCasesConfig.model_fields)
            raise UserError(
                f"{argument}: write field=value{nearest(field, known)}; the fields are "
                f"{', '.join(known)}"
            )
        try:
            values[field] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{argument}: the value is not valid YAML; quote it") from None
    try:
        return UseCasesConfig.model_validate(values)
    except ValidationError as error:
        lines = (f"{e['loc'][0]}: {e['msg']}; it is {e['input']!r}" for e in error.errors())
        raise UserError("\n".join(lines)) from None


if __name__ == "__main__":
    sys.exit(run_command(main))

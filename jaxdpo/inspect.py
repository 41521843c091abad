"""`python -m jaxdpo.inspect DATA [field=value …]`: finds what is wrong with preference data."""

import sys
from typing import Any

import yaml
from pydantic import ValidationError

from jaxdpo.cli.command import run_command
from jaxdpo.errors import UserError, nearest
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.inspection.run import inspect_data

USAGE = """usage: python -m jaxdpo.inspect DATA [field=value …]

Says what is wrong with preference data, and writes a report. Bad lines are counted, not fatal.
Fields of data.… and batch.… are those of a run.
"""


def main(arguments: list[str]) -> None:
    """Inspects the data that the arguments name."""
    if not arguments or {"-h", "--help"} & set(arguments):
        fields = InspectConfig.model_fields.items()
        print(USAGE + "\n".join(f"  {name}: {field.description}" for name, field in fields))
        return
    inspect_data(parse(arguments))


def parse(arguments: list[str]) -> InspectConfig:
    """Reads the configuration from a command line.

    Raises:
      UserError: For a mistake in it.
    """
    path, *rest = arguments
    values: dict[str, Any] = {"data": {"path": path, "on_error": "skip"}}
    for argument in rest:
        name, equals, text = argument.partition("=")
        section, dot, field = name.partition(".")
        known = [*InspectConfig.model_fields]
        if not equals or section not in known or bool(dot) != (section in ("data", "batch")):
            raise UserError(f"{argument}: write field=value{nearest(section, known)}; see --help")
        target = values.setdefault(section, {}) if dot else values
        try:
            target[field or section] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{argument}: the value is not valid YAML: {error}") from None
    try:
        config = InspectConfig.model_validate(values)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError("\n".join(lines)) from None
    if config.remedies and config.write is None:
        raise UserError("remedies are given, but nothing is written; set write=clean.jsonl")
    return config


if __name__ == "__main__":
    sys.exit(run_command(main))

"""`python -m jaxdpo.evaluate base=… sft=… dpo=… data=… criteria=… out=…`: models compared."""

import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.cli.command import run_command
from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import load_settings, sections_text, split_arguments
from jaxdpo.data.reading.prompts import with_path
from jaxdpo.errors import UserError, nearest
from jaxdpo.evaluation.criteria.spec import Criteria, criterion_named
from jaxdpo.evaluation.human_agreement import align, read_alignment, write_alignment
from jaxdpo.evaluation.report.tables import tables
from jaxdpo.evaluation.results import unjudged
from jaxdpo.rounds.compare import EvaluateConfig, compare

USAGE = """usage: python -m jaxdpo.evaluate [CONFIG.yaml] NAME=MODEL … data=… criteria=… out=FOLDER
       python -m jaxdpo.evaluate alignment=JUDGED.jsonl criteria=… [out=FOLDER]

Lets models answer the same prompts in the same way, judges the answers, and compares the models.
The same command again continues one that was cut off. NAME is yours to choose (base, sft, dpo);
MODEL is a folder, an adapter folder, org/name, a run folder, one of a run's checkpoints, or
http://host:port/v1#name. The second form says how far criteria agree with people's judgements.
"""
_SHOWN = 10


class AlignmentConfig(BaseModel):
    """Which criteria are held against what people said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alignment: str = Field(description="JSONL file: messages, and a judgement, PASS or FAIL")
    criteria: Criteria = Field(description="names, functions, or a YAML file of them")
    out: str | None = Field(default=None, description="folder of figures and disagreements")


def main(arguments: list[str]) -> None:
    """Evaluates as the arguments say; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + sections_text(EvaluateConfig))
        return
    arguments = without_dashes(arguments)
    if any(argument.startswith("alignment=") for argument in arguments):
        show_alignment(load_settings(AlignmentConfig, None, arguments))
        return
    path, overrides = split_arguments(with_models(with_path(arguments)))
    config = load_settings(EvaluateConfig, path, overrides)
    reporter = Reporter()
    comparison = compare(config)
    for table in tables(comparison):
        reporter.table(table.title, table.header, list(table.rows))
    failed = list(unjudged(comparison))
    for where, model, criterion, why in failed[:_SHOWN]:
        reporter.say(f"{where}: {criterion} could not judge {model}: {why}")
    if len(failed) > _SHOWN:
        reporter.say(f"and {len(failed) - _SHOWN} more that could not be judged: see the report")
    bill = ", ".join(f"{name} {count:g}" for name, count in comparison.usage.items() if count)
    reporter.say((f"judging took {bill}\n" if bill else "") + f"{config.out}/report.html")


def without_dashes(arguments: list[str]) -> list[str]:
    """Arguments in which `--field value` and `--field=value` are `field=value`."""
    left, found = list(arguments), []
    while left:
        argument = left.pop(0)
        if argument.startswith("--") and "=" not in argument and left:
            argument = f"{argument}={left.pop(0)}"
        found.append(argument.removeprefix("--"))
    return found


def with_models(arguments: list[str]) -> list[str]:
    """Arguments in which `sft=…` stands for `models.sft=…`.

    Raises:
      UserError: For a name that is nearly a field's, which it was probably meant to be.
    """
    known = list(EvaluateConfig.model_fields)
    found = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and "." not in name and name not in known:
            if nearest(name, known):
                raise UserError(
                    f"{name}: unknown field{nearest(name, known)}; a model that is called "
                    f"{name} is given as models.{name}=…"
                )
            argument = f"models.{argument}"
        found.append(argument)
    return found


def show_alignment(config: AlignmentConfig) -> None:
    """Shows how far criteria agree with people, and where they do not."""
    reporter, labelled = Reporter(), read_alignment(config.alignment)
    for spec in config.criteria:
        criterion = criterion_named(spec)
        found = align(criterion, labelled)
        reporter.table(f"{criterion.name} and people", ("", ""), list(found.rows()))
        for each in found.disagreements[:_SHOWN]:
            reporter.say(
                f"{each.where}: people {each.person} ({each.person_explanation or 'no reason'}), "
                f"{criterion.name} {each.judge} ({each.judge_explanation or 'no reason'})"
            )
        more = len(found.disagreements) - _SHOWN
        if more > 0:
            reporter.say(f"and {more} more disagreements" + ("" if config.out else "; set out=…"))
        for said in found.unjudged[:_SHOWN]:
            reporter.say(f"could not be judged: {said}")
        if config.out is not None:
            folder = Path(config.out)
            folder.mkdir(parents=True, exist_ok=True)
            write_alignment(found, folder / f"alignment_{criterion.name}.json")


if __name__ == "__main__":
    sys.exit(run_command(main))

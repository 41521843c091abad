"""Evaluates models from the command line, or criteria against people, and shows the figures."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.cli.console import Reporter
from jaxdpo.cli.fields import find_key
from jaxdpo.errors import UserError, nearest
from jaxdpo.evaluation.criteria.spec import Criteria, criterion_named
from jaxdpo.evaluation.human_agreement import (
    compare_with_people,
    read_human_judgements,
    write_human_agreement,
)
from jaxdpo.evaluation.judgement import Criterion
from jaxdpo.evaluation.report.tables import tables
from jaxdpo.evaluation.results import unjudged
from jaxdpo.rounds.compare import EvaluateConfig, compare
from jaxdpo.storage.files import refuse_existing

# Lines on the terminal; the report and the files have all.
_SHOWN = 10


class AgreementConfig(BaseModel):
    """The judgements of people, and the criteria that are compared with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alignment: str = Field(description="JSONL file: messages, and a judgement, PASS or FAIL")
    criteria: Criteria = Field(description="names, functions, or a YAML file of them")
    out: str | None = Field(default=None, description="folder of figures and disagreements")
    overwrite: bool = Field(default=False, description="replace figures that are there already")


def evaluate(config: EvaluateConfig) -> None:
    """Compares models and shows the figures.

    Raises:
      UserError: For whatever the user can fix.
    """
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


def with_models(overrides: list[str]) -> list[str]:
    """Returns overrides in which `sft=PATH` stands as `models.sft=PATH`.

    Raises:
      UserError: For a name that is nearly a field's, which it was probably meant to be.
    """
    known = [*EvaluateConfig.model_fields]
    found = []
    for override in overrides:
        key, _, _ = override.partition("=")
        name = key.partition(".")[0]
        # Fields may be given by the names that `train` knows them under, too.
        if name not in known and find_key(EvaluateConfig, key) is None:
            if nearest(name, known):
                raise UserError(
                    f"{key}: unknown key{nearest(name, known)}; a model that is called {key} is "
                    f"given as models.{key}=…"
                )
            override = f"models.{override}"
        found.append(override)
    return found


def show_agreement(config: AgreementConfig) -> None:
    """Shows how far criteria agree with people, and where they do not.

    Raises:
      UserError: If the judgements or a criterion cannot be read, or figures are there already.
    """
    reporter, labelled = Reporter(), read_human_judgements(config.alignment)
    criteria = [criterion_named(spec) for spec in config.criteria]
    files = [None if config.out is None else _figures_of(config.out, each) for each in criteria]
    for file in files:
        # Before judging, which a model may be paid for.
        if file is not None and not config.overwrite:
            refuse_existing(file)
    for criterion, file in zip(criteria, files, strict=True):
        found = compare_with_people(criterion, labelled)
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
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_human_agreement(found, file)


def _figures_of(out: str, criterion: Criterion) -> Path:
    return Path(out) / f"alignment_{criterion.name}.json"

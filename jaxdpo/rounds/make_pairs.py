"""From prompts to preference pairs: answers of a model, judgements of them, and pairs.

What each stage makes is a file in one folder, and each continues where it was cut off:

config.yaml         what was asked for
generations.jsonl   answers to every prompt
judgements.jsonl    what each criterion says of each answer
pairs.jsonl         the preference pairs, as training reads them

Beside the answers and the judgements stands what they depend on: with anything else they are not
continued.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from jaxdpo.cli.console import Reporter
from jaxdpo.data.reading.prompts import PromptsConfig, read_prompts
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.criteria.spec import Criteria
from jaxdpo.evaluation.judgement_file import JudgedLine, judge_to_file, pass_rates
from jaxdpo.feedback.collecting import Collected, collect
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.generation.generators import source_of
from jaxdpo.generation.server import ServerConfig, is_server
from jaxdpo.generation.to_file import sample_to_file
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.storage.files import replacing, shipped


class AnswersConfig(BaseModel):
    """How a model's answers are drawn and judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: PromptsConfig = Field(description="the prompts")
    criteria: Criteria = Field(
        description="what answers are judged by: a list, or a YAML file with one under criteria"
    )
    samples: int = Field(default=4, ge=2, description="answers to each prompt")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(temperature=1.0), description="how they are drawn"
    )
    margin: float | None = Field(
        default=None,
        gt=0,
        description="pair all answers whose values differ by this; default: best against worst",
    )

    @field_validator("sampling", mode="before")
    @classmethod
    def _warm(cls, sampling: Any) -> Any:
        return {"temperature": 1.0, **sampling} if isinstance(sampling, dict) else sampling

    @model_validator(mode="after")
    def _check_temperature(self) -> Self:
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature is 0: all answers to a prompt would be the same; set it to 1"
            )
        return self


class PairingConfig(AnswersConfig):
    """Whose answers make pairs, and where everything goes."""

    model: Annotated[str, AfterValidator(shipped)] = Field(
        description="what answers: folder, org/name, run, or http://…#name"
    )
    folder: str = Field(description="for all files; the same one again continues")
    server: ServerConfig | None = Field(default=None, description="how a server is asked")

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        if self.server is not None and not is_server(self.model):
            raise ValueError(f"server would be ignored: {self.model} is no server's address")
        return self


@dataclass(frozen=True)
class Paired:
    """What became of the prompts.

    Attributes:
      pairs: `pairs.jsonl`, or None if there are none.
      collected: The pairs, and what made none.
      rates: The share of answers that pass, by criterion and by all of them.
    """

    pairs: Path | None
    collected: Collected
    rates: dict[str, Estimate]


def make_pairs(config: PairingConfig, reporter: Reporter) -> Paired:
    """Answers prompts, judges the answers, and makes pairs of the best and the worst.

    Raises:
      UserError: For whatever the user can mend; what is done is kept.
    """
    folder = Path(config.folder).expanduser()
    keep_config(config, folder)
    judged = judged_answers(config, config.model, folder, reporter, config.server)
    pairs, collected = paired_answers(config, folder)
    return Paired(pairs, collected, pass_rates(judged))


def prefer(config: PairingConfig) -> None:
    """Makes pairs, and shows how many answers pass and how many pairs there are.

    Raises:
      UserError: For whatever the user can fix, and if no prompt makes a pair.
    """
    reporter = Reporter()
    paired = make_pairs(config, reporter)
    reporter.table("Answers that pass", ("criterion", "share"), rate_rows(paired.rates))
    reporter.say(paired.collected.summary())
    if paired.pairs is None:
        raise UserError(f"{config.folder}: no prompt has answers of which one is better")
    reporter.say(f"written: {paired.pairs}")


def paired_answers(config: AnswersConfig, folder: Path) -> tuple[Path | None, Collected]:
    """The pairs that a folder's `judgements.jsonl` makes, in its `pairs.jsonl`, if there are any.

    What a model answered and nothing can be learnt from, an empty answer or one with control
    characters, is left out and counted.
    """
    path, target = folder / "judgements.jsonl", folder / "pairs.jsonl"
    settings = FeedbackConfig(margin=config.margin, on_error="skip")
    collected = collect("criteria", str(path), settings)
    if not collected.pairs:
        return None, collected
    write_pairs(collected.pairs, target)
    return target, collected


def judged_answers(
    config: AnswersConfig,
    model: str,
    folder: Path,
    reporter: Reporter,
    server: ServerConfig | None = None,
) -> list[JudgedLine]:
    """A model's answers in `generations.jsonl` of a folder, judged in `judgements.jsonl`.

    Raises:
      UserError: For whatever the user can mend; what is done is kept.
    """
    prompts = read_prompts(config.data).prompts
    source = source_of(model, config.sampling, server)
    with reporter.bar("answers", len(prompts) * config.samples) as advance:
        path = folder / "generations.jsonl"
        answers = sample_to_file(path, source, prompts, config.samples, advance)
    with reporter.bar("judgements", len(answers) * len(config.criteria)) as advance:
        path = folder / "judgements.jsonl"
        judged, spent = judge_to_file(path, answers, config.criteria, advance)
    failed = [line for line in judged if not line.judged]
    if failed:
        reporter.say(
            f"{path}: {len(failed)} of {len(judged)} answers could not be judged (the first: "
            f"{failed[0].criterion}: {failed[0].explanation})"
        )
    for criterion, costs in spent.items():
        if costs:
            said = ", ".join(f"{name} {value:g}" for name, value in costs.items())
            reporter.say(f"{criterion}: {said}")
    return judged


def keep_config(config: BaseModel, folder: Path) -> None:
    """Writes what was asked for to a folder's config.yaml.

    Raises:
      UserError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.yaml") as file:
            values = config.model_dump(mode="json")
            yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)
    except OSError as error:
        raise UserError(f"folder {folder}: cannot be written: {error.strerror}") from error


def rate_rows(rates: dict[str, Estimate]) -> list[tuple[str, str]]:
    """Pass rates, for a table."""
    return [(name, str(rate)) for name, rate in rates.items()]

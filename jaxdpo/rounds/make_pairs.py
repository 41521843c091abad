"""From prompts to preference pairs: answers of a model, judgements of them, and pairs.

Each stage writes a file in one folder, and continues where it was cut off:

config.yaml         the configuration
generations.jsonl   answers to every prompt
judgements.jsonl    each criterion's judgement of each answer
pairs.jsonl         the preference pairs, as training reads them

Beside the answers and the judgements stand the settings that they depend on: with others they are
not continued.
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
from jaxdpo.evaluation.judgement_file import pass_rates
from jaxdpo.feedback.collecting import Collected, collect
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.generation.generators import source_of, started_source
from jaxdpo.generation.server import ServerConfig, is_server
from jaxdpo.generation.started_server import StartedServer
from jaxdpo.rounds.answering import AnswerFiles, JudgedModels, check_judgeable, sample_and_judge
from jaxdpo.rounds.margins import margin_advice, pairs_by_margin, possible_margins
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.storage.files import replacing, shipped


class AnswersConfig(BaseModel):
    """Answers of a model: to which prompts, how they are drawn, and what judges them."""

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
        # The default of a whole section does not hold for one of which some fields are given.
        return {"temperature": 1.0, **sampling} if isinstance(sampling, dict) else sampling

    @model_validator(mode="after")
    def _check_temperature(self) -> Self:
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature is 0: all answers to a prompt would be the same; set it to 1"
            )
        return self


class PairingConfig(AnswersConfig):
    """Pairs of a model's own answers, and the folder that everything goes to."""

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
    """Pairs that prompts led to, and what led to none.

    Attributes:
      pairs: `pairs.jsonl`, or None if there are none.
      collected: The pairs, and what made none.
      rates: The share of answers that pass, by criterion and by all of them.
    """

    pairs: Path | None
    collected: Collected
    rates: dict[str, Estimate]


def make_pairs(config: PairingConfig, reporter: Reporter | None = None) -> Paired:
    """Answers prompts, judges the answers, and makes pairs of the best and the worst.

    The same call on the same folder continues what was cut off.

    >>> config = PairingConfig(model="models/sft", data={"path": "prompts.jsonl"}, folder="pairs",
    ...                        criteria=[{"name": "word_limit"}])
    >>> make_pairs(config).pairs  # pairs/pairs.jsonl

    Raises:
      UserError: For whatever the user can fix; what is done is kept.
    """
    reporter = reporter or Reporter()
    folder = Path(config.folder).expanduser()
    keep_config(config, folder)
    judged = judged_answers(config, config.model, folder, reporter, config.server)
    pairs, collected = paired_answers(config, folder)
    say_margins(judged, folder, len(collected.pairs), reporter)
    return Paired(pairs, collected, pass_rates(judged.judged.lines))


def say_margins(judged: JudgedModels, folder: Path, made: int, reporter: Reporter) -> None:
    """Says how many more pairs another margin would give.

    Args:
      judged: The judged answers.
      folder: The folder with their judgements.
      made: Pairs that were made of them.
      reporter: Shows the line.
    """
    answers = [answer for given in judged.answers.values() for answer in given]
    margins = possible_margins(answers, judged.judged.by_answer(len(answers)))
    advice = margin_advice(pairs_by_margin(folder / "judgements.jsonl", margins), made)
    if advice:
        reporter.say(advice)


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
    """Makes pairs of a folder's `judgements.jsonl`, in its `pairs.jsonl` if there are any.

    Answers that nothing can be learnt from, empty ones or those with control characters, are left
    out and counted.
    """
    # From the file, as `collect criteria` reads it: whoever runs that by hand gets the same pairs.
    path, target = folder / "judgements.jsonl", folder / "pairs.jsonl"
    # A model says things that no training file may hold; a user's own feedback is stricter.
    settings = FeedbackConfig(margin=config.margin, on_error="skip")
    collected = collect("criteria", str(path), settings)
    # An empty file would be trained on as if it were meant.
    if not collected.pairs:
        return None, collected
    write_pairs(collected.pairs, target)
    return target, collected


def judged_answers(
    config: AnswersConfig,
    model: str,
    folder: Path,
    reporter: Reporter,
    server: ServerConfig | StartedServer | None = None,
) -> JudgedModels:
    """Samples a model's answers and judges them, in files of a folder.

    Args:
      config: The prompts, the sampling and the criteria.
      model: The model that answers.
      folder: Place of `generations.jsonl` and `judgements.jsonl`.
      reporter: Shows the progress.
      server: How a server is asked, or one that is started to answer.

    Raises:
      UserError: For whatever the user can fix; what is done is kept.
    """
    prompts = read_prompts(config.data).prompts
    # Before the model is loaded: sampling is what costs hours.
    check_judgeable(config.criteria, prompts, reporter)
    if isinstance(server, StartedServer):
        source = started_source(server, model, config.sampling)
    else:
        source = source_of(model, config.sampling, server)
    files = AnswerFiles({model: folder / "generations.jsonl"}, folder / "judgements.jsonl")
    found = sample_and_judge(
        [(model, source)], prompts, config.samples, config.criteria, files, reporter
    )
    lines, usage = found.judged
    # Counted and never taken for a failure: a judge that broke says nothing about the answer.
    failed = [line for line in lines if not line.judged]
    if failed:
        reporter.say(
            f"{files.judgements}: {len(failed)} of {len(lines)} answers could not be judged (the "
            f"first: {failed[0].criterion}: {failed[0].explanation})"
        )
    for criterion, costs in usage.items():
        if costs:
            said = ", ".join(f"{name} {value:g}" for name, value in costs.items())
            reporter.say(f"{criterion}: {said}")
    return found


def keep_config(config: BaseModel, folder: Path) -> None:
    """Writes a configuration to a folder's config.yaml.

    Nothing is refused here: the files of answers and judgements refuse what they depend on, and
    everything else (a larger `data.limit`, another margin) may change.

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
    """Returns pass rates as rows of a table."""
    return [(name, str(rate)) for name, rate in rates.items()]

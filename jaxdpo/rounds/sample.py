"""Samples a model's answers to prompts into a file; of several answers, the best by criteria."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jaxdpo.cli.console import Reporter
from jaxdpo.data.generations import Generation
from jaxdpo.data.reading.prompts import PromptsConfig, read_prompts
from jaxdpo.errors import UserError
from jaxdpo.evaluation.best import best_of
from jaxdpo.evaluation.criteria.spec import Criteria
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.generation.generators import Dtype, source_of
from jaxdpo.generation.server import ServerConfig, is_server
from jaxdpo.rounds.answering import AnswerFiles, check_judgeable, sample_and_judge
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.storage.files import replacing, shipped


class SampleConfig(BaseModel):
    """The model that answers, the prompts, and the file of the answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, AfterValidator(shipped)] = Field(description="the model that answers")
    data: PromptsConfig = Field(description="the prompts")
    out: str = Field(description="JSONL file of the answers")
    samples: int = Field(default=1, ge=1, description="answers to each prompt")
    best_of: int | None = Field(
        default=None, ge=2, description="write the best of so many, by criteria; all are kept too"
    )
    criteria: Criteria = Field(
        default=(), validate_default=False, description="names, functions, or a YAML file of them"
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how they are drawn")
    dtype: Dtype | None = Field(
        default=None,
        description="of activations; default: float32 on CPU, bfloat16 elsewhere",
        json_schema_extra={"also": "model.compute_dtype"},
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja file to use in place of the model's chat template",
        json_schema_extra={"also": "data.chat_template"},
    )
    server: ServerConfig | None = Field(default=None, description="how a server is asked")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        drawn = self.best_of or self.samples
        if drawn > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"{drawn} answers to a prompt would all be the same at temperature 0; set "
                "sampling.temperature=1"
            )
        if (self.best_of is None) == bool(self.criteria):
            given, other = ("criteria", "best_of") if self.criteria else ("best_of", "criteria")
            raise ValueError(f"{given} would be ignored without {other}; set both")
        if self.best_of is not None and self.samples > 1:
            raise ValueError("samples would be ignored: best_of says how many are drawn")
        if is_server(self.model):
            for name in ("dtype", "chat_template"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} would be ignored: {self.model} is a server")
        elif self.server is not None:
            raise ValueError(f"server would be ignored: {self.model} is no server's address")
        return self


def sample(config: SampleConfig) -> list[Generation]:
    """Answers the prompts, and returns the answers that were written.

    Raises:
      UserError: For whatever the user can fix.
    """
    reporter, out = Reporter(), Path(config.out)
    read = read_prompts(config.data)
    reporter.say(f"{config.data.path}: {read.summary()}")
    # Before the model is loaded, and hours are spent on answers that nothing can judge.
    check_judgeable(config.criteria, read.prompts, reporter)
    source = source_of(
        config.model, config.sampling, config.server, config.dtype, config.chat_template
    )
    # Of best of n all answers are kept, too: what they were chosen from can be read again.
    drawn = out.with_suffix(".samples.jsonl") if config.best_of else out
    files = AnswerFiles({config.model: drawn}, out.with_suffix(".judgements.jsonl"))
    samples, sources = config.best_of or config.samples, [(config.model, source)]
    judged = sample_and_judge(sources, read.prompts, samples, config.criteria, files, reporter)
    answers = judged.answers[config.model]
    if config.best_of is not None:
        answers = _best(answers, judged.judged.by_answer(len(answers)), out, reporter)
    cut = sum(not answer.finished for answer in answers)
    note = f", {cut} of them cut off at {config.sampling.max_new_tokens} tokens" if cut else ""
    reporter.say(f"{out}: {len(answers)} answers to {len(read.prompts)} prompts{note}")
    return answers


def _best(
    drawn: list[Generation], judged: list[dict[str, Judgement]], out: Path, reporter: Reporter
) -> list[Generation]:
    """Writes each prompt's best answer."""
    best = best_of(drawn, judged)
    # Without a judgement there is no best, and the first would be a choice of nobody's.
    if not best:
        why = next(each.explanation for said in judged for each in said.values() if not each.judged)
        raise UserError(f"no answer could be judged by every criterion; the first: {why}")
    with replacing(out) as file:
        file.writelines(answer.line() for answer in best)
    missing = len({answer.id for answer in drawn}) - len(best)
    if missing:
        reporter.say(f"{missing} prompts have no answer that every criterion could judge")
    return best

"""An evaluation from its configuration to its files: every model answers, all are judged alike.

generations/NAME.jsonl   each model's answers
examples.jsonl           a line a prompt: every model's answer and its judgements
judgements.jsonl         a line a judgement, as `jaxdpo.collect criteria` reads them
results.json             all figures
chart.png, chart.svg     pass rates and scores with intervals
report.html              all of it, answers side by side
"""

import datetime
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jaxdpo import __version__
from jaxdpo.cli.console import Reporter
from jaxdpo.data.reading.prompts import Prompt, PromptsConfig, read_prompts
from jaxdpo.errors import UserError
from jaxdpo.evaluation.comparison import Comparison, compare_rows, to_json
from jaxdpo.evaluation.criteria.spec import Criteria, label_of
from jaxdpo.evaluation.judgement import Judgement, example_of
from jaxdpo.evaluation.judges.client import JudgeConfig
from jaxdpo.evaluation.judges.llm import judge_client
from jaxdpo.evaluation.judges.pairwise import Preference, prefer
from jaxdpo.evaluation.report.charts import write_charts
from jaxdpo.evaluation.report.html import NOTHING_KNOWN, About, page
from jaxdpo.evaluation.results import Row
from jaxdpo.generation.generators import (
    DATA_ANSWERS,
    Dtype,
    data_source,
    policy_source,
    source_of,
)
from jaxdpo.generation.server import ServerConfig, is_server
from jaxdpo.generation.to_file import Source
from jaxdpo.hub.policy import Policy
from jaxdpo.pages.settings import settings_table
from jaxdpo.rounds.answering import AnswerFiles, JudgedModels, sample_and_judge
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.storage.continuation import keep_settings
from jaxdpo.storage.files import replacing, shipped

# The settings that the figures are of; another evaluation is refused by them.
_SETTINGS = "evaluation.json"


def _place(model: str) -> str:
    return model if model == DATA_ANSWERS else shipped(model)


class EvaluateConfig(BaseModel):
    """Models to be compared, the prompts that they answer, and what judges the answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, Annotated[str, AfterValidator(_place)]] = Field(
        default_factory=dict,
        description="name=where it lies, in the order of comparison; name=@answers is the data's "
        "own answers, beside the models'",
    )
    data: PromptsConfig = Field(description="the prompts")
    out: str = Field(description="folder of the results")
    criteria: Criteria = Field(
        default=(), validate_default=False, description="names, functions, or a YAML file of them"
    )
    judge: JudgeConfig | None = Field(
        default=None, description="compares each two models' answers, in both orders"
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="how answers are drawn, the same for all models"
    )
    dtype: Dtype | None = Field(
        default=None,
        description="of activations; default: float32 on CPU, bfloat16 elsewhere",
        json_schema_extra={"also": "model.compute_dtype"},
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja file to use in place of the models' chat templates",
        json_schema_extra={"also": "data.chat_template"},
    )
    server: ServerConfig | None = Field(default=None, description="how a server is asked")
    overwrite: bool = Field(
        default=False, description="replace the results of another evaluation in the folder"
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        servers = [name for name, model in self.models.items() if is_server(model)]
        if self.server is not None and not servers:
            raise ValueError("server would be ignored: no model is a server's address")
        for name in ("dtype", "chat_template"):
            if getattr(self, name) is not None and servers:
                raise ValueError(f"{name} would be ignored by {servers[0]}, which is on a server")
        if not self.criteria and self.judge is None:
            raise ValueError("nothing judges the answers; set criteria=…, or judge.instructions=…")
        # Names are file names below generations/, and must stay there.
        for name in self.models:
            if not name or "/" in name or name.startswith("."):
                raise ValueError(f"models: {name!r} can't name a file; call the model otherwise")
        return self


def compare(config: EvaluateConfig, policies: Mapping[str, Policy] | None = None) -> Comparison:
    """Lets models answer the same prompts, judges the answers, and writes the figures.

    The same call on the same folder continues an evaluation that was cut off.

    >>> config = EvaluateConfig(models={"sft": "models/sft", "dpo": "runs/dpo"}, out="evaluation",
    ...                         data={"path": "prompts.jsonl"}, criteria=[{"name": "word_limit"}])
    >>> compare(config)  # a notebook shows chart and tables

    Args:
      config: The evaluation.
      policies: Further models, in memory, by name.

    Raises:
      UserError: For whatever the user can fix.
    """
    reporter, out = Reporter(), Path(config.out)
    held = dict(policies or {})
    twice = sorted(held.keys() & config.models.keys())
    if twice:
        raise UserError(f"models: {twice[0]} is given twice; call one of them otherwise")
    models = config.models | {name: policy.source for name, policy in held.items()}
    if not models:
        raise UserError("there is no model to evaluate; write name=folder, for each of them")
    read = read_prompts(config.data)
    reporter.say(f"{config.data.path}: {read.summary()}")
    _keep_to_one_evaluation(config, models, out)
    files = AnswerFiles(
        {name: out / "generations" / f"{name}.jsonl" for name in models}, out / "judgements.jsonl"
    )
    # A generator: each model is loaded when its turn comes, and two are never in memory for long.
    sources = ((name, _source(config, name, held.get(name))) for name in models)
    judged = sample_and_judge(sources, read.prompts, 1, config.criteria, files, reporter)
    comparison = _compared(config, models, read.prompts, judged, reporter)
    write_files(comparison, out, _about(config, out))
    return comparison


def _keep_to_one_evaluation(config: EvaluateConfig, models: dict[str, str], out: Path) -> None:
    """Refuses a folder whose results are of other models, prompts or criteria.

    Raises:
      UserError: Naming each difference.
    """
    compared = {"data", "criteria", "judge"}
    settings = {"models": models, **config.model_dump(mode="json", include=compared)}
    path = out / _SETTINGS
    if config.overwrite:
        path.unlink(missing_ok=True)
    elif (out / "results.json").exists() and not path.exists():
        raise UserError(
            f"{out}: holds the results of an evaluation already; set overwrite=true to replace "
            "them, or out to a new folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    keep_settings(
        path,
        settings,
        f"{out} holds another evaluation",
        "set overwrite=true to replace its results, or out to a new folder",
    )


def _source(config: EvaluateConfig, name: str, policy: Policy | None) -> Source:
    if policy is not None:
        return policy_source(name, policy, config.sampling, config.dtype)
    model = config.models[name]
    if model == DATA_ANSWERS:
        return data_source()
    return source_of(model, config.sampling, config.server, config.dtype, config.chat_template)


def _compared(
    config: EvaluateConfig,
    models: dict[str, str],
    prompts: tuple[Prompt, ...],
    judged: JudgedModels,
    reporter: Reporter,
) -> Comparison:
    # Of this call alone: judgements that were kept from an earlier one cost nothing now.
    bills = list(judged.judged.usage.values())
    preferences: list[dict[tuple[str, str], Preference]] = [{} for _ in prompts]
    if config.judge is not None:
        client = judge_client(config.judge)
        # Each two models, not each against the first: the judge need not be transitive.
        for first, second in itertools.combinations(models, 2):
            reporter.say(f"{config.judge.model} compares {first} and {second}")
            firsts, seconds = (
                [example_of(answer) for answer in judged.answers[name]] for name in (first, second)
            )
            found = prefer(client, config.judge.instructions, firsts, seconds)
            for kept, preference in zip(preferences, found, strict=True):
                kept[first, second] = preference
        bills.append(client.usage())
    by_model = _by_model(judged, len(prompts))
    rows = [
        Row(
            prompt,
            {name: judged.answers[name][number] for name in models},
            {name: by_model[name][number] for name in models},
            preferences[number],
        )
        for number, prompt in enumerate(prompts)
    ]
    usage = {name: sum(bill.get(name, 0.0) for bill in bills) for bill in bills for name in bill}
    return compare_rows(models, [label_of(spec) for spec in config.criteria], rows, usage)


def _by_model(judged: JudgedModels, prompts: int) -> dict[str, list[dict[str, Judgement]]]:
    """Returns model ↦ criterion ↦ judgement of its answer to each prompt."""
    by_answer = judged.judged.by_answer(prompts * len(judged.answers))
    # One model's answers stand after another's, in the order of the models.
    return {
        name: by_answer[place * prompts : (place + 1) * prompts]
        for place, name in enumerate(judged.answers)
    }


def _about(config: EvaluateConfig, out: Path) -> About:
    """Returns what the report says of its circumstances."""
    # The day on which the evaluation began: the same files give the same page again.
    begun = datetime.date.fromtimestamp((out / _SETTINGS).stat().st_mtime)
    return About(f"jaxdpo {__version__} evaluate, begun {begun}", settings_table(config))


def write_files(comparison: Comparison, out: Path, about: About = NOTHING_KNOWN) -> None:
    """Writes the figures of an evaluation; its answers and judgements are files already.

    Args:
      comparison: The figures.
      out: The folder.
      about: The circumstances, which the report states.

    Raises:
      UserError: If the folder cannot be written.
    """
    try:
        with replacing(out / "examples.jsonl") as file:
            file.writelines(_line(_example(row)) for row in comparison.rows)
        with replacing(out / "results.json") as file:
            json.dump(results(comparison), file, indent=1, ensure_ascii=False, allow_nan=False)
        # With a judge alone there are no rates to draw.
        if comparison.criteria:
            write_charts(comparison, out)
        with replacing(out / "report.html") as file:
            file.write(page(comparison, about))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error


def results(comparison: Comparison) -> dict[str, Any]:
    """Returns all figures as JSON has them."""
    names = ("models", "criteria", "rates", "versus", "head_to_head", "words", "cut_off")
    figures = {name: to_json(getattr(comparison, name)) for name in names}
    # The file's key is older than the field's name.
    return {"prompts": len(comparison.rows), **figures, "spent": to_json(comparison.usage)}


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _example(row: Row) -> dict[str, Any]:
    return {
        "id": row.prompt.id,
        "source": row.prompt.source,
        "messages": list(row.prompt.messages),
        "metadata": row.prompt.metadata,
        "answers": {
            model: {
                "completion": answer.completion,
                "finished": answer.finished,
                "judgements": {k: v.model_dump() for k, v in row.judgements[model].items()},
            }
            for model, answer in row.answers.items()
        },
        "preferences": [
            {"first": first, "second": second, **preference._asdict()}
            for (first, second), preference in row.preferences.items()
        ],
    }

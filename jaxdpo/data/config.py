"""The settings of preference data."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jaxdpo.storage.buckets import usable
from jaxdpo.storage.files import cache_folder, shipped

Format = Literal[
    "messages",
    "openai",
    "trl",
    "sharegpt",
    "transcript",
    "alpaca",
    "ranked",
    "token_ids",
    "labelled",
    "compared",
    "rated",
    "examples",
    "logs",
]
Role = Literal[
    "prompt",
    "system",
    "history",
    "messages",
    "chosen",
    "rejected",
    "rejected_message",
    "completion",
    "reasoning",
    "text",
    "label",
    "score",
    "answers",
    "scores",
    "ranks",
    "answer_a",
    "answer_b",
    "preferred",
    "chosen_score",
    "rejected_score",
    "split",
    "tools",
    "metadata",
    "chat_template_kwargs",
]


# In the order that an error lists them in.
FORMATS: tuple[Format, ...] = get_args(Format)
Turns = Literal["last", "all"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _shipped(path: str | dict[str, float]) -> str | dict[str, float]:
    # `@quickstart/…` names a file that the package brings along.
    for name in [path] if isinstance(path, str) else path:
        usable(name)
    if isinstance(path, str):
        return shipped(path)
    if not path:
        raise ValueError("names no source")
    return {shipped(name): weight for name, weight in path.items()}


class DataConfig(BaseModel):
    """The sources of preference pairs, and how they become tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str | dict[str, Weight], AfterValidator(_shipped)] = Field(
        description="file, folder or glob, here or in a bucket, or org/name:config:split of the "
        "Hub; or several, each with its weight: how often an epoch has its TRAIN pairs",
        json_schema_extra={"bucket": True},
    )
    format: Format | None = Field(
        default=None,
        description="form of the records; default: recognised from the keys of each file",
    )
    columns: dict[Role, str | tuple[str, ...]] = Field(
        default={},
        description="columns of the records by what they hold, such as {prompt: question, system: "
        "persona, chosen: answers.0.text}; a path leads into structures; several columns of "
        "prompt are joined by line breaks; metadata lists columns that say nothing of the prompt",
    )
    ranked_margin: float | None = Field(
        default=None,
        gt=0,
        description="ranked lists: pair all whose scores differ by this; default: best and worst",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="at bad lines: stop before training, or skip them and write them to a file",
    )
    test_fraction: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="share of prompts, by hash, that go to TEST where a line names no split",
    )
    max_length: int = Field(
        default=1024, ge=32, description="most tokens of a prompt and one completion together"
    )
    chat_template: str | None = Field(
        default=None, description="Jinja file to use in place of the tokenizer's chat template"
    )
    turns: Turns = Field(
        default="last",
        description="what supervised fine-tuning learns of a conversation: its last answer, or all",
    )
    weight_key: str | None = Field(
        default=None, description="field of a pair's metadata: a factor on its loss"
    )
    margin_key: str | None = Field(
        default=None, description="field of a pair's metadata: the reward margin it should have"
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="processes that tokenise the files of a data set, each a share of them; "
        "default: one a core where several large files are named",
    )
    cache_dir: str | None = Field(
        default=None,
        description="folder of tokenised data, reference log-probs and compiled programs, for "
        "all runs; default: $JAXDPO_CACHE, or ~/.cache/jaxdpo",
    )

    def weights(self) -> dict[str, float]:
        """Returns each source's path and weight."""
        return {self.path: 1.0} if isinstance(self.path, str) else self.path

    def reading(self) -> dict[str, Any]:
        """Returns the settings that decide what the same files are read as."""
        names = {"format", "columns", "ranked_margin", "test_fraction", "max_length", "turns"}
        return self.model_dump(include=names)

    def name(self) -> str:
        """Names the sources, for messages."""
        return ", ".join(self.weights())

    def cache_folder(self) -> Path:
        """Returns the folder that `cache_dir` stands for."""
        return cache_folder(self.cache_dir)

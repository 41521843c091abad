"""What a user may set about preference data."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
]


FORMATS: tuple[Format, ...] = get_args(Format)
Turns = Literal["last", "all"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _shipped(path: str | dict[str, float]) -> str | dict[str, float]:
    if isinstance(path, str):
        return shipped(path)
    if not path:
        raise ValueError("names no source")
    return {shipped(name): weight for name, weight in path.items()}


class DataConfig(BaseModel):
    """Where preference pairs come from and how they become tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str | dict[str, Weight], AfterValidator(_shipped)] = Field(
        description="file, folder, glob or org/name:config:split of the Hub; or several, each with "
        "its weight: how often an epoch has its TRAIN pairs"
    )
    format: Format | None = Field(
        None, description="form of the records; default: recognised from the keys of each file"
    )
    ranked_margin: float | None = Field(
        None,
        gt=0,
        description="ranked lists: pair all whose scores differ by this; default: best and worst",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="at bad lines: stop before training, or skip them and write them to a file",
    )
    test_fraction: float = Field(
        0.2,
        ge=0.0,
        lt=1.0,
        description="share of prompts, by hash, that go to TEST where a line names no split",
    )
    max_length: int = Field(
        1024, ge=32, description="most tokens of a prompt and one completion together"
    )
    chat_template: str | None = Field(
        None, description="Jinja file to use in place of the tokenizer's chat template"
    )
    turns: Turns = Field(
        "last",
        description="what supervised fine-tuning learns of a conversation: its last answer, or all",
    )
    weight_key: str | None = Field(
        None, description="field of a pair's metadata: a factor on its loss"
    )
    margin_key: str | None = Field(
        None, description="field of a pair's metadata: the reward margin it should have"
    )
    cache_dir: str | None = Field(
        None,
        description="folder of tokenised data, reference log-probs and compiled programs, for "
        "all runs; default: $JAXDPO_CACHE, or ~/.cache/jaxdpo",
    )

    def weights(self) -> dict[str, float]:
        """Each source's path and weight."""
        return {self.path: 1.0} if isinstance(self.path, str) else self.path

    def name(self) -> str:
        """The sources, for messages."""
        return ", ".join(self.weights())

    def cache_folder(self) -> Path:
        """The folder that holds what `cache_dir` says."""
        return cache_folder(self.cache_dir)

"""Settings of the use case."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Smollm2Config(BaseModel):
    """The task, its size, and its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["word_limit", "dictionary", "from_text", "all", "report"] = Field(
        description="the task, or all; report: only the page of what is there"
    )
    folder: str = Field(default="runs/smollm2", description="where everything is written")
    model: str = Field(
        default="@smollm2", description="the model: @smollm2, another folder, or org/name"
    )
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2),
        min_length=1,
        description="each draws prompts, answers, the pairs' order and the adapters anew",
    )
    prompts: int = Field(default=80, ge=10, description="prompts whose answers become pairs")
    samples: int = Field(default=6, ge=2, description="answers to each of them")
    # Failed answers score 0.6 at most: two make a pair if they differ by two checks of six, or if
    # one of them passes.
    margin: float = Field(
        default=0.15, gt=0, description="difference of scores by which two answers are a pair"
    )
    tests: int = Field(default=40, ge=10, description="prompts about topics of TEST")
    rates: tuple[float, ...] = Field(
        default=(),
        description="tune: run each contestant with these learning rates, and measure them on "
        "topics of VALIDATION in place of TEST",
    )
    page: str | None = Field(
        default=None,
        description="Markdown file that gets the results between its lines <!-- results --> and "
        "<!-- end of results -->; default: results.md in the folder",
    )

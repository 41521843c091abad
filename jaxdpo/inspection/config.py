"""The configuration of an inspection."""

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.inspection.cleaning import Remedy
from jaxdpo.storage.files import shipped


class InspectConfig(BaseModel):
    """The data to inspect, and the files to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(description="the preference pairs")
    batch: BatchConfig = Field(
        default=BatchConfig(), description="steps and rows, for the forecast"
    )
    model: Annotated[str, AfterValidator(shipped)] | None = Field(
        default=None, description="folder or org/name whose tokenizer counts tokens"
    )
    displacement: int = Field(
        default=0,
        ge=0,
        description="pairs to list whose training is likeliest to make their own chosen answers "
        "less likely, by one pass of the model over the data (CHES); needs the weights of model",
    )
    report: str = Field(default="inspect.html", description="HTML file of the report")
    show: Annotated[int, Field(ge=0)] | tuple[int, ...] = Field(
        default=5,
        description="pairs that the report shows as tokens: how many, or [their line numbers]",
    )
    write: str | None = Field(default=None, description="JSONL file of the cleaned pairs")
    supervised: bool | None = Field(
        default=None,
        description="whether examples with one answer are read, as loss.type=sft does; default: "
        "seen from the first records",
    )
    remedies: tuple[Remedy, ...] = Field(
        default=(),
        description="for write: any of dedupe, near-duplicates, conflicts, leaks, balance",
    )

    @field_validator("data", mode="before")
    @classmethod
    def _skip_bad_lines(cls, data: Any) -> Any:
        # An inspection counts the bad lines that would stop a run.
        return {"on_error": "skip", **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_displacement(self) -> Self:
        if self.displacement and self.model is None:
            raise ValueError("displacement is by a model's hidden states; set model=… as well")
        if self.displacement and self.supervised:
            raise ValueError("displacement is of pairs, and supervised examples have one answer")
        return self

    @model_validator(mode="after")
    def _check_remedies(self) -> Self:
        if self.remedies and self.write is None:
            raise ValueError("remedies are given, but nothing is written; set write=clean.jsonl")
        return self

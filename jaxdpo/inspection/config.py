"""The configuration of an inspection."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.inspection.cleaning import Remedy


class InspectConfig(BaseModel):
    """The data to inspect, and the files to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(description="the preference pairs")
    batch: BatchConfig = Field(
        default=BatchConfig(), description="steps and rows, for the forecast"
    )
    model: str | None = Field(
        default=None, description="folder or org/name whose tokenizer counts tokens"
    )
    report: str = Field(default="inspect.html", description="HTML file of the report")
    show: Annotated[int, Field(ge=0)] | tuple[int, ...] = Field(
        default=5,
        description="pairs that the report shows as tokens: how many, or [their line numbers]",
    )
    write: str | None = Field(default=None, description="JSONL file of the cleaned pairs")
    remedies: tuple[Remedy, ...] = Field(
        default=(), description="for write: any of dedupe, conflicts, leaks, balance"
    )

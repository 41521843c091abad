"""The configuration of a scoring: the models, the answers, and the files of what came of it."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import Split
from jaxdpo.storage.buckets import usable
from jaxdpo.storage.files import shipped

ModelPath = Annotated[
    str,
    AfterValidator(usable),
    AfterValidator(shipped),
    Field(json_schema_extra={"bucket": True}),
]


class Selection(BaseModel):
    """Bounds on the margin of the implicit rewards, and a share of the pairs within them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: float | None = Field(default=None, description="least margin of a selected pair")
    at_most: float | None = Field(default=None, description="largest margin of a selected pair")
    share: float = Field(
        default=1.0, gt=0, le=1, description="share of the pairs within the bounds to select"
    )
    keep: Literal["largest", "smallest"] = Field(
        default="largest",
        description="margins that the share has: the largest (clear preferences), or the smallest "
        "(pairs that the model has yet to learn)",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        low, high = self.at_least, self.at_most
        if low is not None and high is not None and low > high:
            raise ValueError(f"at_least is {low} and at_most {high}: no margin lies between them")
        return self


# Answers that were sampled, benchmark lines and preference data are told apart by their keys.
class ScoredData(DataConfig):
    """The answers to score: preference data in any form, or a file of generations."""

    split: Split | None = Field(default=None, description="TRAIN or TEST; default: both")
    single: bool = Field(
        default=False, description="score one answer a line: lines need no rejected one"
    )
    select: Selection | None = Field(
        default=None, description="TRAIN pairs to write, by the margin of their rewards"
    )


class ScoreConfig(BaseModel):
    """The models that score, the answers, and the files to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelPath = Field(
        description="model that scores: folder, adapter, org/name, run, or one of its checkpoints"
    )
    reference: ModelPath | None = Field(
        default=None,
        description="reference model, with the same vocabulary; default: none, and log-probs alone",
    )
    data: ScoredData = Field(description="the answers")
    beta: float = Field(
        default=0.1, gt=0, description="reward of a nat: β (log π − log π_ref) is the reward"
    )
    out: str = Field(description="JSONL file of the scores")
    group_by: str | None = Field(
        default=None, description="field of metadata; the table has a row for each of its values"
    )
    best: str | None = Field(
        default=None, description="JSONL file of each prompt's answer with the highest reward"
    )
    write: str | None = Field(default=None, description="JSONL file of the selected pairs")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="of activations; default: float32 on CPU, bfloat16 elsewhere",
        json_schema_extra={"also": "model.compute_dtype"},
    )
    overwrite: bool = Field(default=False, description="replace the files that are there already")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.data.select is None) != (self.write is None):
            given, other = ("write", "data.select") if self.write else ("data.select", "write")
            raise ValueError(f"{given} would be ignored without {other}; set both")
        for name, value in (("data.select", self.data.select), ("best", self.best)):
            if value is not None and self.reference is None:
                raise ValueError(f"{name} reads implicit rewards; set reference=…")
        if self.data.select is not None and self.data.single:
            raise ValueError("data.select reads margins, and single answers have none")
        return self

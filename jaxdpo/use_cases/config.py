"""Settings of a run of the use cases."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Enough to see what DPO does: with 300 tests a rate of 30% is known to ± 5 points.
QUICK = {"seeds": (0,), "prompts": 1000, "tests": 300}


class UseCasesConfig(BaseModel):
    """Size of the evidence, and its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(default="runs/use_cases", description="where everything is written")
    size: Literal["full", "quick"] = Field(
        default="full", description="quick: one seed, 1000 prompts and 300 tests, if not said below"
    )
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="each draws data, weights and answers anew"
    )
    prompts: int = Field(default=4000, ge=50, description="prompts whose answers become pairs")
    samples: int = Field(default=6, ge=2, description="answers to each of them")
    tests: int = Field(default=1000, ge=50, description="TEST prompts, and as many shifted ones")
    sft: tuple[str, ...] = Field(
        default=(), description="overrides of the supervised run, such as [batch.size=16]"
    )
    dpo: tuple[str, ...] = Field(
        default=(), description="overrides of the DPO run, such as [loss.beta=0.1]"
    )

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**QUICK, **values} if values.get("size") == "quick" else values


class UseCasesCommand(UseCasesConfig):
    """The use case that the command runs, beside its settings."""

    name: str = Field(description="the use case, or all")

"""What may be set about a run of the use cases."""

from pydantic import BaseModel, ConfigDict, Field


class UseCasesConfig(BaseModel):
    """How large the evidence is, and where it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(default="runs/use_cases", description="where everything is written")
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="each draws data, weights and answers anew"
    )
    prompts: int = Field(default=300, ge=50, description="prompts whose answers become pairs")
    samples: int = Field(default=8, ge=2, description="answers to each of them")
    tests: int = Field(default=600, ge=50, description="TEST prompts, and as many away")
    sft: tuple[str, ...] = Field(
        default=(), description="overrides of the supervised run, such as [batch.size=16]"
    )
    dpo: tuple[str, ...] = Field(
        default=(), description="overrides of the DPO run, such as [loss.beta=0.1]"
    )

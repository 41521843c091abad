"""The settings of sampling."""

from pydantic import BaseModel, ConfigDict, Field


class SamplingConfig(BaseModel):
    """Settings by which completions are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_new_tokens: int = Field(default=128, gt=0, description="Most tokens of a completion.")
    temperature: float = Field(
        default=0.0, ge=0, description="Divides the logits; 0 takes the likeliest token."
    )
    top_k: int | None = Field(
        default=None, gt=0, description="Draw from this many likeliest tokens; null for all."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Draw from the fewest likeliest tokens that have this probability together.",
    )
    stop: tuple[str, ...] = Field(
        default=(), description="Texts that end a completion, and are left out of it."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the draws.")
    batch_size: int = Field(default=16, gt=0, description="Completions decoded at a time.")

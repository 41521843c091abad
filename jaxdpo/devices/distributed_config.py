"""Limits on how long the processes of a run wait for one another."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DistributedConfig(BaseModel):
    """Limits, in seconds, on how long the processes of a run wait for one another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    join: float = Field(
        default=300.0, gt=0, description="seconds that a process waits at the start for the others"
    )
    silence: float = Field(
        default=10.0,
        ge=2.0,
        description="seconds without a sign of life after which a process counts as lost, and the "
        "others end",
    )
    heartbeat: float = Field(
        default=60.0,
        description="seconds of JAX's own heartbeat, which aborts the process; a second line of "
        "defence",
    )
    leave: float = Field(
        default=60.0, gt=0, description="seconds that JAX waits for the others at the very end"
    )

    @model_validator(mode="after")
    def _check_order(self) -> "DistributedConfig":
        if self.heartbeat <= self.silence:
            raise ValueError(
                f"heartbeat is {self.heartbeat:g} and silence {self.silence:g}: JAX would abort "
                "the processes before one of them could say why; set heartbeat above silence"
            )
        return self

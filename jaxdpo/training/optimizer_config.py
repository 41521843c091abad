"""Options of the optimizer: the update rule by name, its schedule, and limits."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RuleName = Literal["adamw", "lion", "adafactor", "muon", "schedule_free"]
# Defaults of the learning rate: TRL's for full fine-tuning, ten times that for adapters, whose best
# rate is about ten times higher (Schulman et al. 2025, "LoRA Without Regret").
_FULL_LEARNING_RATE, _LORA_LEARNING_RATE = 1e-6, 1e-5
# Every weight moves by the whole rate under Lion, whose authors take a rate 3 to 10 times lower
# than AdamW's (Chen et al. 2023, section 5).
_LION_SHARE = 1 / 3
# Rule ↦ the options, of those that only some rules read, that it reads.
_READS: dict[RuleName, frozenset[str]] = {
    "adamw": frozenset({"beta1", "beta2", "epsilon", "mean_dtype"}),
    "lion": frozenset({"beta1", "beta2", "mean_dtype"}),
    "adafactor": frozenset(),
    "muon": frozenset({"beta1", "beta2", "epsilon", "mean_dtype"}),
    "schedule_free": frozenset({"beta1", "beta2", "epsilon"}),
}
_SOME_READ = ("beta1", "beta2", "epsilon", "mean_dtype")
# Defaults of a rule that are not AdamW's: those of its authors.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "lion": {"beta2": 0.99},
    "muon": {"beta1": 0.95},
    "schedule_free": {"schedule": "constant"},
}


class OptimizerConfig(BaseModel):
    """The update rule and its schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuleName = Field(
        default="adamw",
        description="update rule, as optax has it; adafactor keeps next to no state, lion one mean "
        "of gradients; muon makes the updates of matrices orthogonal; schedule_free averages "
        "weights in place of lowering the rate",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate; default: 1e-6, with LoRA 1e-5; with lion a third of that",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="linear",
        description="how the learning rate falls to 0 after the warm-up; with schedule_free: "
        "constant",
    )
    warmup_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the steps in which the learning rate rises from 0",
    )
    beta1: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="decay of the mean of gradients; muon: default 0.95; lion: share of the mean "
        "in an update; schedule_free: share of the average in the weights that gradients are "
        "taken at",
    )
    beta2: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of the mean of squared gradients; of lion's mean of gradients: default "
        "0.99",
    )
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the mean square")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="decoupled weight decay, of matrices only (no norms, no biases)",
    )
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="gradients are scaled down to this global norm; null: never"
    )
    loraplus_lr_ratio: float | None = Field(
        default=None,
        gt=0,
        description="LoRA+: B, which begins at zero, learns this many times faster than A; null: "
        "as fast",
    )
    mean_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype that the mean of gradients is kept in; that of their squares is float32",
    )

    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is then what is "
        "evaluated and exported; null: the weights themselves are",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        # Written out, so that a run's config.yaml says what it was trained with.
        if not isinstance(values, dict):
            return values
        return {**_DEFAULTS.get(str(values.get("name")), {}), **values}

    @model_validator(mode="after")
    def _check_read(self) -> Self:
        for option in _SOME_READ:
            given = getattr(self, option) != type(self).model_fields[option].default
            if given and option not in _READS[self.name]:
                raise ValueError(
                    f"{option} is {getattr(self, option)}, but {self.name} does not read it; leave "
                    "it out"
                )
        if self.name == "schedule_free":
            self._check_schedule_free()
        return self

    def _check_schedule_free(self) -> None:
        if self.schedule != "constant":
            raise ValueError(
                f"schedule is {self.schedule}, but schedule_free averages weights in place of "
                "lowering the rate; leave it out"
            )
        if self.beta1 == 0:
            raise ValueError(
                "beta1 is 0, but schedule_free takes gradients at a mixture with that share of the "
                "average; set it above 0, such as to 0.9"
            )
        if self.ema_decay is not None:
            raise ValueError(
                f"ema_decay is {self.ema_decay}, but schedule_free keeps an average of its own; "
                "leave it out"
            )

    def peak(self, lora: bool) -> float:
        """Returns the configured learning rate, or the default for what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        rate = _LORA_LEARNING_RATE if lora else _FULL_LEARNING_RATE
        return rate * _LION_SHARE if self.name == "lion" else rate

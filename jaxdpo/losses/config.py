"""The configuration of what a run minimises, checked against the table of losses."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jaxdpo.losses.against_reference import Divergence
from jaxdpo.losses.table import LOSSES, LossName, readers

# Defaults of options that only some losses read: the configuration holds None where nobody set
# them, so that a value given to a loss that ignores it is noticed.
_GAMMA, _TAU, _ALPHA = 0.5, 0.05, 0.5
# DPO's own loss is `sigmoid` in the field's configurations; people write what they mean.
_SYNONYMS = {"dpo": "sigmoid"}


def _loss_names(value: Any) -> Any:
    """Makes a list of one name, and puts the table's names for their synonyms."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        return names
    return tuple(_SYNONYMS.get(each, each) if isinstance(each, str) else each for each in names)


class LossConfig(BaseModel):
    """The objective: Σ weight · loss over the named losses, averaged over a step's pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Annotated[tuple[LossName, ...], BeforeValidator(_loss_names)] = Field(
        default=("sigmoid",),
        min_length=1,
        description="a loss, or a list of losses to be mixed; dpo is sigmoid",
    )
    weights: tuple[float, ...] | None = Field(
        default=None, description="a weight for each loss of the list; default: 1 each"
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        description="strength of the pull to the reference model, 1/nats of reward",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of pairs whose preference is wrong"
    )
    gamma: float | None = Field(
        default=None, ge=0, description="target margin of simpo and alphapo, nats; default: 0.5"
    )
    discopop_tau: float | None = Field(
        default=None, gt=0, lt=1, description="temperature of discopop's mixing; default: 0.05"
    )
    f_divergence: Divergence = Field(
        default="reverse_kl", description="divergence from the reference that is regularised"
    )
    alpha: float | None = Field(
        default=None, description="exponent of alpha_divergence and of alphapo; default: 0.5"
    )
    ld_alpha: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="factor on the tokens that the longer completion has more (LD-DPO)",
    )
    use_weighting: bool = Field(
        default=False, description="weigh pairs by how likely the policy finds them (WPO)"
    )
    desirable_weight: float = Field(
        default=1.0, gt=0, description="λ_D of kto: factor on answers labelled true"
    )
    undesirable_weight: float = Field(
        default=1.0, gt=0, description="λ_U of kto: factor on answers labelled false"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.type)) < len(self.type):
            raise ValueError(f"type names a loss twice: {', '.join(self.type)}; add their weights")
        if self.weights is not None and len(self.weights) != len(self.type):
            raise ValueError(
                f"weights has {len(self.weights)} values for {len(self.type)} losses; give one each"
            )
        if "kto" in self.type and len(self.type) > 1:
            raise ValueError(
                "kto learns from answers one by one and the others from pairs; leave it by itself"
            )
        known = {option for loss in LOSSES.values() for option in loss.options}
        for option, field in type(self).model_fields.items():
            if option in known:
                self.check_read(option, getattr(self, option), field.default)
        if "exo_pair" in self.type and self.label_smoothing == 0:
            raise ValueError("exo_pair needs label_smoothing > 0, such as 0.001: it takes its log")
        if self.use_weighting and self.sorts:
            raise ValueError("use_weighting has no meaning for losses that sort the pairs (aot)")
        # Supervised learning is mixed with any divergence: it has no log-ratios to apply it to.
        others = set(self.type) - set(readers("f_divergence")) - {"sft"}
        if self.f_divergence != "reverse_kl" and others:
            raise ValueError(
                f"f_divergence is {self.f_divergence!r}, but {' and '.join(sorted(others))} would "
                f"ignore it; {', '.join(readers('f_divergence'))} read it"
            )
        alpha_read = self.f_divergence == "alpha_divergence" or "alphapo" in self.type
        if self.alpha is not None and not alpha_read:
            raise ValueError(
                f"alpha is {self.alpha!r}, but only f_divergence=alpha_divergence and alphapo "
                "read it"
            )
        return self

    def check_read(self, option: str, value: Any, default: Any = None) -> None:
        """Refuses an option that none of the losses reads.

        Args:
          option: Its name, as the table of losses has it.
          value: What it is set to.
          default: What it is where nobody sets it.

        Raises:
          ValueError: Naming option, value, losses and those that would read it.
        """
        reading = readers(option)
        if value != default and not set(reading) & set(self.type):
            raise ValueError(
                f"{option} is {value!r}, but {' and '.join(self.type)} would ignore it; "
                f"{', '.join(reading)} read it"
            )

    def formula_options(self) -> dict[str, float]:
        """Returns what the formulas take beside arrays, by their parameters' names."""
        return {
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "gamma": _GAMMA if self.gamma is None else self.gamma,
            "alpha": _ALPHA if self.alpha is None else self.alpha,
            "discopop_tau": _TAU if self.discopop_tau is None else self.discopop_tau,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }

    def weighted_types(self) -> list[tuple[LossName, float]]:
        """Returns the losses and their weights."""
        return list(zip(self.type, self.weights or (1.0,) * len(self.type), strict=True))

    @property
    def coupled(self) -> bool:
        """True if a pair's loss depends on the other pairs of its step."""
        return any(LOSSES[name].couples for name in self.type)

    @property
    def sorts(self) -> bool:
        """True if any of the losses sorts the step's pairs, so that none can be weighted."""
        return any(LOSSES[name].sorts for name in self.type)

    @property
    def reads_reference(self) -> bool:
        """True if any of the losses is against a reference."""
        return any(LOSSES[name].needs_reference for name in self.type)

    @property
    def labelled(self) -> bool:
        """True if answers are learnt one by one, each with its label (KTO)."""
        return self.type == ("kto",)

    @property
    def supervised(self) -> bool:
        """True if chosen completions alone are learnt, so that rejected ones are not read."""
        return self.type == ("sft",)

"""Which losses there are, and which options each of them reads."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "orpo",
    "simpo",
    "cpo",
    "alphapo",
    "sft",
    "kto",
]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

# A pair's loss depends on its rank among the other pairs of its optimizer step.
SORTED = frozenset({"aot", "aot_unpaired"})
# Fields of LossConfig, and keys of the pairs' metadata, by what they do: the losses that read them.
# What no chosen loss reads must stay at its default.
_DIVERGING = {"sigmoid", "hinge", "ipo", "sigmoid_norm", "robust", "exo_pair", "discopop"}
_READERS: dict[str, set[str]] = {
    "beta": set(get_args(LossName)) - {"sft"},
    "label_smoothing": {
        *("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "simpo", "cpo"),
    },
    "data.margin_key": {"sigmoid", "hinge", "sigmoid_norm", "simpo"},
    "gamma": {"simpo", "alphapo"},
    "discopop_tau": {"discopop"},
    "f_divergence": _DIVERGING,
    "alpha": {"alphapo", *_DIVERGING},
    "ld_alpha": set(get_args(LossName)) - {"sft", "kto"},
    "use_weighting": set(get_args(LossName)) - {"kto", *SORTED},
    "data.weight_key": set(get_args(LossName)) - SORTED,
    "desirable_weight": {"kto"},
    "undesirable_weight": {"kto"},
}
WITHOUT_REFERENCE = frozenset({"orpo", "simpo", "cpo", "alphapo", "sft"})
# A pair's loss depends on the other pairs of its optimizer step.
COUPLED = SORTED | {"kto"}


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class LossConfig(BaseModel):
    """What is minimised: Σ weight · loss over the named losses, averaged over a step's pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Annotated[tuple[LossName, ...], BeforeValidator(_as_tuple)] = Field(
        default=("sigmoid",), min_length=1, description="a loss, or a list of losses to be mixed"
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
        for option, field in type(self).model_fields.items():
            if option in _READERS:
                self.check_read(option, getattr(self, option), field.default)
        if "exo_pair" in self.type and self.label_smoothing == 0:
            raise ValueError("exo_pair needs label_smoothing > 0, such as 0.001: it takes its log")
        if self.use_weighting and SORTED & set(self.type):
            raise ValueError("use_weighting has no meaning for losses that sort the pairs (aot)")
        diverging = self.f_divergence != "reverse_kl"
        others = set(self.type) - _DIVERGING - {"sft"}
        if diverging and others:
            raise ValueError(
                f"f_divergence is {self.f_divergence!r}, but {' and '.join(sorted(others))} would "
                f"ignore it; {', '.join(sorted(_DIVERGING))} read it"
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
          option: Its name, among the readers above.
          value: What it is set to.
          default: What it is where nobody sets it.

        Raises:
          ValueError: Naming option, value, losses and those that would read it.
        """
        readers = _READERS[option]
        if value != default and not readers & set(self.type):
            raise ValueError(
                f"{option} is {value!r}, but {' and '.join(self.type)} would ignore it; "
                f"{', '.join(name for name in get_args(LossName) if name in readers)} read it"
            )

    def weighted_types(self) -> list[tuple[LossName, float]]:
        """The losses and their weights."""
        return list(zip(self.type, self.weights or (1.0,) * len(self.type), strict=True))

    @property
    def coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its step."""
        return bool(COUPLED & set(self.type))

    @property
    def reads_reference(self) -> bool:
        """Whether any of the losses is against a reference."""
        return bool(set(self.type) - WITHOUT_REFERENCE)

    @property
    def labelled(self) -> bool:
        """Whether answers are learnt one by one, each with its label."""
        return self.type == ("kto",)

    @property
    def supervised(self) -> bool:
        """Whether chosen completions alone are learnt, so that rejected ones are not read."""
        return self.type == ("sft",)

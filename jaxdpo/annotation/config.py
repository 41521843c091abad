"""The settings of a studio."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from jaxdpo.cli.settings import read_yaml
from jaxdpo.data.reading.prompts import PromptsConfig
from jaxdpo.evaluation.criteria.spec import Criteria
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.storage.files import shipped

# Part of the names of conversations, and of cookies.
NAME = re.compile(r"[\w.@-]{1,40}")
# 16 hexadecimal digits are 64 bits: at a guess a second, nobody finds one.
_SHORTEST_TOKEN = 16


def _read_annotators(given: object) -> object:
    # A file keeps tokens out of the list of processes, where a command line can be read by all.
    return read_yaml(Path(given).expanduser()) if isinstance(given, str) else given


def _named(models: object) -> object:
    """Returns `{name: place}` for a list of places, each named by the end of its path."""
    if not isinstance(models, list | tuple):
        return models
    ends = [str(place).rstrip("/").split("/") for place in models]
    # A run's export lies in <run>/model; the run's name says more.
    short = [end[-2] if end[-1] == "model" and len(end) > 1 else end[-1] for end in ends]
    # Two models/…/sft folders are told apart by their whole places.
    unique = len(set(short)) == len(short)
    return {str(n if unique else p): p for n, p in zip(short, models, strict=True)}


Annotators = Annotated[dict[str, str], BeforeValidator(_read_annotators)]


class StudioConfig(BaseModel):
    """A studio: the models that answer, the prompts, the folder, and who may judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[dict[str, str], BeforeValidator(_named)] = Field(
        default={}, description="the models that answer: a list of places, or {name: place}"
    )
    data: PromptsConfig | None = Field(
        default=None, description="prompts for Review and Compare; preference data show answers"
    )
    folder: Annotated[str, AfterValidator(shipped)] = Field(
        default="feedback", description="where everything is kept; the same one again continues"
    )
    answers: int = Field(default=2, ge=1, le=9, description="answers side by side")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(temperature=1.0), description="how answers are drawn"
    )
    criteria: Criteria = Field(
        default=(),
        description="what Review asks PASS or FAIL for; Data shows how far each judge agrees",
    )
    overlap: int = Field(default=1, ge=1, description="people who judge each row")
    annotators: Annotators = Field(
        default={},
        description="names and tokens, or a YAML file of them; needed where other machines may ask",
    )
    host: str = Field(default="127.0.0.1", description="address to listen at")
    port: int = Field(default=8010, ge=0, le=65535, description="0 for any that is free")

    @field_validator("sampling", mode="before")
    @classmethod
    def _warm(cls, sampling: Any) -> Any:
        # The default of a whole section does not hold for one of which some fields are given.
        return {"temperature": 1.0, **sampling} if isinstance(sampling, dict) else sampling

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models and self.data is None:
            raise ValueError("set models to models that answer, data to rows to be judged, or both")
        if self.sampling.temperature == 0 and 0 < len(self.models) < self.answers:
            raise ValueError(
                f"sampling.temperature is 0: {self.answers} answers of {len(self.models)} models "
                "side by side would be the same; set it to 1, or answers to the number of models"
            )
        if not self.is_loopback and not self.annotators:
            raise ValueError(
                f"host={self.host} is open to other machines; set annotators to a YAML file of "
                "names and tokens (such as those of `openssl rand -hex 16`), or leave host out"
            )
        for name, token in self.annotators.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"annotators: {name!r} is no name; write letters, digits and .@-_")
            if len(token) < _SHORTEST_TOKEN:
                raise ValueError(
                    f"annotators.{name}: has a token of {len(token)} characters; use "
                    f"{_SHORTEST_TOKEN} or more"
                )
        return self

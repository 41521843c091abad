"""An answer to be judged, what judges it, and what is said of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.pairs import Message

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Judgement(BaseModel):
    """What a criterion says of one answer; with neither `passed` nor `score` it could not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool | None = Field(default=None, description="None: not judged, or only scored")
    score: float | None = Field(
        default=None, allow_inf_nan=False, description="higher is better; None: only passed or not"
    )
    explanation: str = Field(default="", description="why, for people")

    @property
    def judged(self) -> bool:
        """Whether the criterion came to a judgement."""
        return self.passed is not None or self.score is not None

    @property
    def value(self) -> float:
        """The score, or else 1 for passed and 0 for failed; only where `judged`."""
        assert self.judged
        return float(bool(self.passed)) if self.score is None else self.score


class Example(NamedTuple):
    """One answer to be judged.

    Attributes:
      messages: The prompt, each `{"role": ..., "content": ..., ...}`.
      completion: The answer.
      metadata: The user's own fields of the prompt's line.
    """

    messages: Sequence[Message]
    completion: str
    metadata: Mapping[str, Any] = _NOTHING


@dataclass(frozen=True)
class Criterion:
    """A named way to judge answers.

    Attributes:
      name: What its judgements are known by.
      judge: Judges examples, in their order, each as soon as it is known; it may work on many of
        them at a time.
      usage: Returns what judging has cost so far: requests, tokens and money by name; nothing for
        a function.
    """

    name: str
    judge: Callable[[Sequence[Example]], Iterator[Judgement]]
    usage: Callable[[], dict[str, float]] = field(default=dict)

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any] = _NOTHING
    ) -> Judgement:
        """Judges one answer."""
        return next(iter(self.judge([Example(messages, completion, metadata)])))

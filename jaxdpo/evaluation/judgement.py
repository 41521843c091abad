"""Answers to be judged, criteria that judge them, and judgements."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.generations import Generation
from jaxdpo.data.pairs import Message

# Defaults are shared by all examples, so they must not change.
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Judgement(BaseModel):
    """A criterion's judgement of one answer; with neither `passed` nor `score` there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool | None = Field(default=None, description="None: not judged, or only scored")
    score: float | None = Field(
        default=None, allow_inf_nan=False, description="higher is better; None: only passed or not"
    )
    explanation: str = Field(default="", description="why, for people")

    @property
    def judged(self) -> bool:
        """True if the criterion came to a judgement."""
        return self.passed is not None or self.score is not None

    @property
    def value(self) -> float:
        """The score, or else 1 for passed and 0 for failed; only where `judged`."""
        assert self.judged
        return float(bool(self.passed)) if self.score is None else self.score


class Example(NamedTuple):
    """One answer to be judged, and everything that a criterion may compare it with.

    Attributes:
      messages: The prompt, each `{"role": ..., "content": ..., ...}`.
      completion: The text of the answer.
      metadata: The user's own fields of the prompt's line.
      tools: Function definitions that the prompt offers.
      tool_calls: Calls that the answer makes, as OpenAI writes them.
      reference: The data set's own answer to the prompt, its messages; empty if it has none.
    """

    messages: Sequence[Message]
    completion: str
    metadata: Mapping[str, Any] = _NOTHING
    tools: Sequence[Mapping[str, Any]] = ()
    tool_calls: Sequence[Mapping[str, Any]] = ()
    reference: Sequence[Message] = ()

    @property
    def reference_text(self) -> str | None:
        """The text of the data set's own answer: its last message; None if there is no text."""
        return (self.reference[-1].get("content") or None) if self.reference else None

    @property
    def reference_calls(self) -> list[Mapping[str, Any]]:
        """The calls that the data set's own answer makes, of all its messages."""
        return [call for message in self.reference for call in message.get("tool_calls") or ()]


def example_of(answer: Generation) -> Example:
    """Returns an answer as criteria are given it."""
    return Example(
        answer.messages,
        answer.completion,
        answer.metadata,
        answer.tools,
        answer.tool_calls,
        answer.reference,
    )


@dataclass(frozen=True)
class Criterion:
    """A named way to judge answers.

    Attributes:
      name: The name that its judgements are known by.
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
        """Judges one answer.

        Args:
          messages: The prompt.
          completion: The answer.
          metadata: The user's own fields of the prompt's line.
        """
        return next(iter(self.judge([Example(messages, completion, metadata)])))

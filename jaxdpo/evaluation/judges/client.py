"""Judges as clients of a model: many questions at a time, and replies that are read strictly.

Every question to a judge goes through `read_all`, whether a server answers it or a local model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jaxdpo.data.pairs import Message

Conversation = Sequence[Message]
T = TypeVar("T")
# How often a judge is asked before its reply is given up.
ATTEMPTS = 3


class JudgeConfig(BaseModel):
    """A model that judges: at an OpenAI-compatible server, or a local one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instructions: str = Field(min_length=1, description="what is good, in plain words")
    model: str = Field(description="its name at the server; of a local model the folder")
    local: bool = Field(default=False, description="whether the model runs here")
    base_url: str | None = Field(
        default=None, description="of the server; default: $OPENAI_BASE_URL, or OpenAI's own"
    )
    key_env: str | None = Field(
        default=None,
        description="environment variable of the key that is sent to the server; default: "
        "OPENAI_API_KEY to OpenAI's own and to $OPENAI_BASE_URL, and no key to another base_url",
    )
    confidence: bool = Field(
        default=False,
        description="ask also for a confidence from 0 to 1 that the answer meets the criterion: "
        "the judgement's score",
    )
    concurrency: int = Field(default=8, gt=0, description="requests at a time; rows of a batch")
    timeout: float = Field(default=60.0, gt=0, description="seconds that a reply may take")
    retries: int = Field(
        default=5, ge=0, description="times a request is sent again, with growing pauses"
    )
    max_tokens: int | None = Field(default=1024, gt=0, description="of a reply; null: as many")
    temperature: float | None = Field(
        default=0.0, ge=0, description="of the replies; null: the server's own"
    )
    cache: str | None = Field(
        default=None,
        description="folder where replies are kept; default: $JAXDPO_CACHE, or ~/.cache/jaxdpo",
    )
    prices: tuple[float, float] | None = Field(
        default=None, description="of a million prompt and completion tokens, to count the cost"
    )

    @model_validator(mode="after")
    def _check_local(self) -> Self:
        of_servers = ("base_url", "key_env", "timeout", "retries", "cache", "prices")
        ignored = [name for name in of_servers if name in self.model_fields_set]
        if self.local and ignored:
            raise ValueError(f"{ignored[0]} is for servers, and local is set; leave one out")
        if self.local and (self.max_tokens is None or self.temperature is None):
            raise ValueError("a local model needs max_tokens and temperature")
        return self


class Reply(NamedTuple):
    """One reply of a model.

    Attributes:
      text: The reply; None if there is none, and then `problem` says why.
      problem: Why the reply cannot be used: refused, cut off, the request too long.
    """

    text: str | None
    problem: str | None = None


@dataclass(frozen=True)
class JudgeClient:
    """A model that can be asked.

    Attributes:
      ask: Conversations → a reply to each, in order, each as soon as it is known.
      usage: Returns what that has cost so far, by name: requests, tokens, money.
    """

    ask: Callable[[Sequence[Conversation]], Iterator[Reply]]
    usage: Callable[[], dict[str, float]] = field(default=dict)


class Read(NamedTuple, Generic[T]):
    """The value that was read from the replies to one question, or None and the reason."""

    value: T | None
    problem: str = ""


def read_all(
    client: JudgeClient,
    conversations: Sequence[Conversation],
    parse: Callable[[str], T | None],
    reminder: str,
) -> list[Read[T]]:
    """Asks, and asks again where a reply cannot be read, with the reply and a reminder added.

    Args:
      client: The model.
      conversations: The questions.
      parse: Reads a reply; None if it does not have the form that was asked for.
      reminder: The message that is added where a reply could not be read.

    Returns:
      The value that was read for each conversation, or the reason that there is none.
    """
    asked = [list(conversation) for conversation in conversations]
    found: dict[int, Read[T]] = {}
    for _ in range(ATTEMPTS):
        # All questions at once, then all that are still open: a judge that answers in batches or
        # threads is kept busy, which one question after another would not do.
        left = [i for i in range(len(asked)) if i not in found]
        replies = client.ask([asked[i] for i in left])
        for i, reply in zip(left, replies, strict=True):
            value = parse(reply.text) if reply.text is not None else None
            # Without a text there is nothing to remind of: refused requests and cut-off replies
            # would only be refused or cut off again.
            if value is not None or reply.text is None:
                found[i] = Read(value, reply.problem or "")
                continue
            asked[i] += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": reminder},
            ]
    unread = "it did not reply as asked in {} attempts; the last: {!r}"
    return [
        found[i] if i in found else Read(None, unread.format(ATTEMPTS, said[-2]["content"][-200:]))
        for i, said in enumerate(asked)
    ]

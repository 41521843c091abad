"""Bodies of requests: OpenAI's fields, and those of vLLM that clients of one's own use.

A field that is not known is refused. Those that change nothing about an answer are taken and
ignored (`_Ignored`, which the documentation lists); those that would change it, and which this
server does not have, are refused unless they have the value that changes nothing.
"""

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jaxdpo.errors import nearest
from jaxdpo.serving.errors import RequestError

# Stop texts are looked for in all of an answer, again and again as it grows.
_MOST_STOPS, _LONGEST_STOP = 16, 1000
# Fields that would change an answer ↦ the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "modalities": (["text"],),
    "suffix": ("",),
}

Body = TypeVar("Body", bound=BaseModel)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class _Ignored(BaseModel):
    """Fields that say something about the caller or the service, and nothing about the answer."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None


class _Unsupported(BaseModel):
    """Fields that are taken only with the value that changes nothing."""

    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    min_p: Any = None
    logit_bias: Any = None


class _Sampling(_Ignored, _Unsupported):
    """Fields that chat and plain completions have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1)
    # 1, as OpenAI has it, where `jaxdpo sample` has 0.
    temperature: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    # The engine's keys have 32 bits: two seeds that differ above would draw the same.
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    stop: tuple[str, ...] = Field(default=(), max_length=_MOST_STOPS)
    max_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        # Clients write a field that is not set as null.
        if isinstance(given, dict):
            known = cls.model_fields
            return {k: v for k, v in given.items() if v is not None or k not in known}
        return given

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("stop")
    @classmethod
    def _short(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if any(not 0 < len(text) <= _LONGEST_STOP for text in given):
            raise ValueError(f"each stop text has 1 to {_LONGEST_STOP} characters")
        return given

    @model_validator(mode="after")
    def _check_neutral(self) -> Self:
        for name, neutral in _NEUTRAL.items():
            value = getattr(self, name, None)
            if value is not None and value not in neutral:
                raise ValueError(
                    f"{name} is not supported: leave it out, or set it to {neutral[0]!r}"
                )
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream=true alone")
        return self

    @property
    def most_likely(self) -> int | None:
        """The number of likeliest tokens to draw from; None for all, as −1 and 0 mean."""
        return self.top_k if self.top_k is not None and self.top_k > 0 else None


class ChatBody(_Sampling):
    """The body of `/v1/chat/completions`."""

    messages: list[Any] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    tools: list[Any] | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    criteria: list[Any] = Field(default_factory=list)
    best_of: int | None = Field(default=None, ge=2)
    response_format: Any = None
    tool_choice: Any = None
    modalities: Any = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.best_of is not None and not self.criteria:
            raise ValueError("best_of needs criteria, by which the best is chosen")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of is {self.best_of}, fewer than the n={self.n} wanted")
        if self.criteria and self.stream:
            raise ValueError("criteria judge whole answers; leave out stream")
        if self.tools and self.stream and self.logprobs:
            raise ValueError("logprobs of streamed calls are not supported; leave out one of them")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ; set one")
        if self.max_tokens == 0:
            raise ValueError("max_tokens is 0; ask for at least one token")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer; None for what the context has room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(_Sampling):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    # OpenAI's own default, which clients count on.
    max_tokens: int | None = Field(default=16, ge=0, le=2**31 - 1)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    suffix: Any = None


class TokenizeBody(BaseModel):
    """The body of `/tokenize`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class DetokenizeBody(BaseModel):
    """The body of `/detokenize`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    tokens: list[int]


def parsed(body: type[Body], content: bytes) -> Body:
    """Reads a body.

    Args:
      body: Its type.
      content: Its JSON text.

    Raises:
      RequestError: If it is not JSON, or a field is unknown, missing or wrong; with the first one.
    """
    try:
        return body.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    # The first alone: of a union pydantic reports each of its types.
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        hint = nearest(name, body.model_fields)
        raise RequestError(400, f"unknown field {where!r}{hint}", where, "unknown_parameter")
    if problem["type"] == "json_invalid":
        raise RequestError(400, f"the body is not JSON: {problem['msg']}", code="invalid_json")
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        said = "is missing"
    raise RequestError(400, f"{where}: {said}" if where else said, where or None, "invalid_value")

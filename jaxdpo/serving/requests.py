"""Steps that the routes have in common: the key, the body, the model, the settings."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request

from jaxdpo.serving.answering import AnsweringModel, AnswerSettings
from jaxdpo.serving.bodies import ChatBody, CompletionBody
from jaxdpo.serving.config import LimitsConfig, ServeConfig
from jaxdpo.serving.errors import RequestError


def key_check(settings: ServeConfig) -> Callable[[Request], Awaitable[None]]:
    """Returns a dependency of routes that refuses requests without the server's key.

    Raises:
      UserError: If the key cannot be read.
    """
    key = settings.key()
    # Digests of one length: comparing keys would tell an attacker how long the right one is.
    wanted = None if key is None else hashlib.sha256(key.encode()).digest()

    # A coroutine, although it waits for nothing: FastAPI calls functions in a thread, which would
    # cost each request as much as all else that is done for it before it is answered.
    async def check(request: Request) -> None:
        if wanted is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        # In constant time, and before the scheme is looked at.
        if not hmac.compare_digest(digest, wanted) or scheme.lower() != "bearer":
            raise RequestError(
                401,
                "the key is missing or wrong; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )

    return check


async def body_of(request: Request, limits: LimitsConfig) -> bytes:
    """Returns the body of a request.

    Args:
      request: The request.
      limits: Its largest size.

    Raises:
      RequestError: If it is no JSON by its type, or too large; then the rest is not kept.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Also a wall: a page of another site can make a browser send text or a form without asking the
    # server, but not JSON.
    if kind != "application/json":
        raise RequestError(
            415,
            f"the content type is {kind or 'missing'}; send application/json",
            code="unsupported_media_type",
        )
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.body_bytes:
            raise RequestError(
                413,
                f"the body is larger than {limits.body_bytes} bytes; shorten the prompt",
                code="body_too_large",
            )
        parts.append(part)
    return b"".join(parts)


def model_named(models: Mapping[str, AnsweringModel], name: str | None) -> AnsweringModel:
    """Returns the model of a name; the first one where none is named.

    Args:
      models: Name ↦ model.
      name: The name that the request has.

    Raises:
      RequestError: If there is none.
    """
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise RequestError(
            404,
            f"there is no model {name!r}; there are {', '.join(models)}",
            "model",
            "model_not_found",
        )
    return models[name]


def answer_settings(
    body: ChatBody | CompletionBody, samples: int, prompts: int, limits: LimitsConfig
) -> AnswerSettings:
    """Returns the way that a request wants its answers drawn.

    Args:
      body: Its fields.
      samples: Answers to each prompt.
      prompts: How many prompts it has.
      limits: Bounds on how much one request may ask for.

    Raises:
      RequestError: If it asks for more answers than it may.
    """
    if samples * prompts > limits.samples:
        raise RequestError(
            400,
            f"asks for {samples * prompts} completions; at most {limits.samples} at a time",
            "n",
            "too_many_completions",
        )
    chat = isinstance(body, ChatBody)
    return AnswerSettings(
        max_new_tokens=body.most_tokens if chat else body.max_tokens,
        temperature=body.temperature,
        top_k=body.most_likely,
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stop,
        samples=samples,
        logprobs=body.logprobs if chat else body.logprobs is not None,
        prompt_logprobs=not chat and body.echo and body.logprobs is not None,
        timeout=limits.timeout,
        # Calls of tools are read from whole answers, streamed or not.
        in_pieces=body.stream and not (chat and body.tools),
    )

"""`/v1/chat/completions`."""

import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.messages import parse_message, parse_tools
from jaxdpo.serving.answering import AnsweringModel, AnswerSettings, Piece
from jaxdpo.serving.bodies import ChatBody, parsed
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.replies import event_stream, unless_gone


def chat_routes(models: Mapping[str, AnsweringModel], settings: ServeConfig) -> APIRouter:
    """Returns the routes of conversations.

    Args:
      models: Name ↦ model.
      settings: Bounds.
    """
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = parsed(ChatBody, await request.body())
        model = model_named(models, body.model)
        asked = _settings(body, settings)
        tools = parse_tools(body.tools, None)
        ids = await model.encode(_messages(body), tools, body.chat_template_kwargs)
        reply = _Reply(body, model, len(ids))
        pieces = model.complete(ids, asked)
        if body.stream:
            return event_stream(reply.chunks(pieces))
        return await unless_gone(request, reply.whole(pieces))

    return routes


def model_named(models: Mapping[str, AnsweringModel], name: str) -> AnsweringModel:
    """Returns the model of a name.

    Raises:
      RequestError: If there is none.
    """
    if name not in models:
        raise RequestError(
            404,
            f"there is no model {name!r}; there are {', '.join(models)}",
            "model",
            "model_not_found",
        )
    return models[name]


def _settings(body: ChatBody, settings: ServeConfig) -> AnswerSettings:
    if body.n > settings.limits.samples:
        raise RequestError(400, f"n is {body.n}; at most {settings.limits.samples}", "n")
    return AnswerSettings(
        body.most_tokens,
        body.temperature,
        body.most_likely,
        body.top_p,
        body.seed,
        body.stop,
        body.n,
        body.logprobs,
        timeout=settings.limits.timeout,
    )


def _messages(body: ChatBody) -> list[Message]:
    unread: Counter[str] = Counter()
    messages = [
        parse_message(message, f"messages[{i}]", unread) for i, message in enumerate(body.messages)
    ]
    if unread:
        raise BadPair(
            "unknown-message-key",
            f"messages have the unknown key {next(iter(unread))!r}; remove it",
        )
    return messages


class _Reply:
    """The reply to one conversation, whole or in chunks."""

    def __init__(self, body: ChatBody, model: AnsweringModel, prompt_tokens: int):
        self._body, self._model = body, model
        self._prompt_tokens, self._completion_tokens = prompt_tokens, 0
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    async def whole(self, pieces: AsyncIterator[Piece]) -> Response:
        texts, reasons = [""] * self._body.n, [""] * self._body.n
        async for piece in pieces:
            self._count(piece)
            texts[piece.index] += piece.text
            reasons[piece.index] = piece.finish_reason or ""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return JSONResponse(self._object("chat.completion", choices, usage=self._usage()))

    async def chunks(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[dict[str, Any]]:
        for index in range(self._body.n):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)
        async for piece in pieces:
            self._count(piece)
            if piece.text:
                yield self._chunk(piece.index, {"content": piece.text}, None)
            if piece.finish_reason is not None:
                yield self._chunk(piece.index, {}, piece.finish_reason)
        if self._body.stream_options is not None and self._body.stream_options.include_usage:
            yield self._object("chat.completion.chunk", [], usage=self._usage())

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model.name,
            "choices": choices,
            **more,
        }

    def _count(self, piece: Piece) -> None:
        self._completion_tokens += len(piece.ids)

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }

"""`/v1/chat/completions`."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.messages import parse_message, parse_tools
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.serving.answering import AnsweringModel, Piece
from jaxdpo.serving.best import CriteriaByName, Judged, best_first, judge, wanted_criteria
from jaxdpo.serving.bodies import ChatBody, parsed
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.logprobs import chat_logprobs
from jaxdpo.serving.objects import ReplyObject
from jaxdpo.serving.replies import event_stream, unless_gone
from jaxdpo.serving.requests import answer_settings, body_of, model_named
from jaxdpo.serving.tool_calls import read_calls
from jaxdpo.serving.watching import log_texts


def chat_routes(
    models: Mapping[str, AnsweringModel], settings: ServeConfig, criteria: CriteriaByName
) -> APIRouter:
    """Returns the route of conversations.

    Args:
      models: Name ↦ model.
      settings: Bounds.
      criteria: Those that requests may name.
    """
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = parsed(ChatBody, await body_of(request, settings.limits))
        model = model_named(models, body.model)
        # All that can be refused is, before anything is computed: a stream's status is sent first.
        asked = answer_settings(body, body.best_of or body.n, 1, settings.limits)
        judged_by = wanted_criteria(body.criteria, criteria)
        messages, tools = _messages(body), parse_tools(body.tools, None)
        # Tools that must not be called are not shown to the model.
        offered = () if body.tool_choice == "none" else tools
        ids = await model.encode(messages, offered, body.chat_template_kwargs)
        reply = _Chat(body, model.chat, offered, len(ids), model.name)
        pieces = model.complete([ids], asked)
        if body.stream:
            return event_stream(reply.chunks(pieces))

        async def whole() -> Response:
            answers = await reply.answers(pieces)
            log_texts(settings, model.name, messages, [answer.text for answer in answers])
            judged = [Judged(answer, {}) for answer in answers]
            if judged_by:
                judged = await judge(judged_by, messages, offered, answers)
            if body.best_of is not None:
                judged = best_first(judged)[: body.n]
            return JSONResponse(reply.whole(judged))

        return await unless_gone(request, whole())

    return routes


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


@dataclass
class ChatAnswer:
    """One of the answers to a conversation.

    Attributes:
      text: Its text, calls of tools included.
      reason: Why it ended.
      logprobs: Of its tokens, as OpenAI writes them.
    """

    text: str = ""
    reason: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class _Chat:
    """The reply to one conversation, whole or in chunks."""

    def __init__(
        self,
        body: ChatBody,
        chat: Chat,
        tools: Sequence[dict[str, Any]],
        prompt_tokens: int,
        model: str,
    ):
        self._body, self._chat, self._tools = body, chat, tools
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._object = ReplyObject("chatcmpl", kind, model, prompt_tokens)

    async def answers(self, pieces: AsyncIterator[Piece]) -> list[ChatAnswer]:
        """Returns all answers, once they are whole."""
        answers = [ChatAnswer() for _ in range(self._body.best_of or self._body.n)]
        async for piece in pieces:
            self._object.count(piece)
            answer = answers[piece.index]
            answer.text += piece.text
            answer.reason = piece.finish_reason or ""
            answer.logprobs += self._logprobs(piece)
        return answers

    def whole(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """Returns the reply of answers, with each criterion's result beside each."""
        return self._object.with_usage(
            [self._choice(index, *each) for index, each in enumerate(judged)]
        )

    def _choice(self, index: int, answer: ChatAnswer, results: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        reason = answer.reason
        read = read_calls(answer.text, self._tools) if self._tools else None
        if read is not None and read.calls:
            message |= {"content": read.content, "tool_calls": read.calls}
            reason = "tool_calls" if reason == "stop" else reason
        logprobs = {"content": answer.logprobs, "refusal": None} if self._body.logprobs else None
        choice = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        return {**choice, "criteria_results": results} if self._body.criteria else choice

    async def chunks(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yields the reply's chunks as pieces come; those that come together in one list."""
        # Clients take the role from an answer's first chunk and add the texts of the others.
        begin: dict[str, Any] = {"role": "assistant", "content": ""}
        due = [self._chunk(index, begin) for index in range(self._body.n)]
        held = [""] * self._body.n
        async for piece in pieces:
            self._object.count(piece)
            held[piece.index] += piece.text
            # Calls are read from whole answers, so with tools nothing is sent before the end.
            if not self._tools:
                due += self._chunks_of(piece)
            elif piece.finish_reason is not None:
                due.append(self._with_calls(piece, held[piece.index]))
            if due:
                yield due
                due = []
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield [self._object.with_usage([])]

    def _chunks_of(self, piece: Piece) -> Iterator[dict[str, Any]]:
        logprobs = self._logprobs(piece)
        if piece.text or logprobs:
            yield self._chunk(piece.index, {"content": piece.text}, None, logprobs)
        if piece.finish_reason is not None:
            yield self._chunk(piece.index, {}, piece.finish_reason)

    def _with_calls(self, piece: Piece, text: str) -> dict[str, Any]:
        read, reason = read_calls(text, self._tools), piece.finish_reason
        delta: dict[str, Any] = {"content": read.content}
        if read.calls:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(read.calls)]
            reason = "tool_calls" if reason == "stop" else reason
        return self._chunk(piece.index, delta, reason)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        return self._object.of([choice])

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        if piece.logprobs is None:
            return []
        # Of the text's tokens: the one that ended the answer has no text.
        count = len(piece.ids)
        own = type(piece.logprobs)(*(leaf[:count] for leaf in piece.logprobs))
        return chat_logprobs(self._chat, piece.ids, own, self._body.top_logprobs or 0)

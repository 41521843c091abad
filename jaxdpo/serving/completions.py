"""`/v1/completions`: what follows a text or token ids, without a chat template."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.sampling.logprobs import TokenLogprobs
from jaxdpo.serving.answering import AnsweringModel, Piece
from jaxdpo.serving.bodies import CompletionBody, parsed
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.logprobs import joined_logprobs, plain_logprobs
from jaxdpo.serving.objects import ReplyObject
from jaxdpo.serving.replies import event_stream, unless_gone
from jaxdpo.serving.requests import answer_settings, body_of, model_named
from jaxdpo.serving.watching import log_texts


def completion_routes(models: Mapping[str, AnsweringModel], settings: ServeConfig) -> APIRouter:
    """Returns the route of plain completions.

    Args:
      models: Name ↦ model.
      settings: Bounds.
    """
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = parsed(CompletionBody, await body_of(request, settings.limits))
        model = model_named(models, body.model)
        prompts = await asyncio.to_thread(_prompts, model.chat, body)
        asked = answer_settings(body, body.n, len(prompts), settings.limits)
        reply = _Completions(body, model, prompts)
        pieces = model.complete(prompts, asked)
        if body.stream:
            return event_stream(reply.chunks(pieces))

        async def whole() -> Response:
            choices = await reply.choices(pieces)
            log_texts(settings, model.name, body.prompt, [each["text"] for each in choices])
            return JSONResponse(reply.object.with_usage(choices))

        return await unless_gone(request, whole())

    return routes


def _prompts(chat: Chat, body: CompletionBody) -> list[list[int]]:
    """Returns each prompt's token ids.

    Raises:
      RequestError: If there is none, or an id is no token's.
    """
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    prompts = [
        # Control tokens in the text are those tokens: whoever writes a prompt in full renders the
        # template too. With what the tokenizer puts before a text.
        chat.tokenizer(each)["input_ids"] if isinstance(each, str) else each
        for each in given
    ]
    if not prompts:
        raise RequestError(400, "prompt holds none; write a text, or token ids", "prompt")
    for ids in prompts:
        check_ids(chat, ids, "prompt")
    return prompts


def check_ids(chat: Chat, ids: Sequence[int], field: str) -> None:
    """Refuses ids that are no token's.

    Args:
      chat: The tokenizer.
      ids: The ids.
      field: Where they stand.

    Raises:
      RequestError: With the first one.
    """
    wrong = next((each for each in ids if not 0 <= each < len(chat.tokenizer)), None)
    if wrong is not None:
        raise RequestError(
            400, f"{field} holds {wrong}; token ids are below {len(chat.tokenizer)}", field
        )


class _Answer:
    """One completion as it grows."""

    def __init__(self, prompt: Sequence[int], echo: str):
        self.text, self.reason = echo, ""
        self.ids: list[int] = []
        self.prompt = prompt
        self.logprobs: list[TokenLogprobs] = []


class _Completions:
    """The reply to plain prompts, whole or in chunks."""

    def __init__(self, body: CompletionBody, model: AnsweringModel, prompts: list[list[int]]):
        self._body, self._chat, self._prompts = body, model.chat, prompts
        tokens = sum(map(len, prompts))
        self.object = ReplyObject("cmpl", "text_completion", model.name, tokens)
        echoed = [self._echo(prompt) for prompt in prompts] if body.echo else [""] * len(prompts)
        self._answers = [
            _Answer(prompt, text)
            for prompt, text in zip(prompts, echoed, strict=True)
            for _ in range(body.n)
        ]

    def _echo(self, prompt: list[int]) -> str:
        return str(self._chat.tokenizer.decode(prompt, skip_special_tokens=False))

    async def choices(self, pieces: AsyncIterator[Piece]) -> list[dict[str, Any]]:
        """Returns the choices, once all are whole."""
        async for piece in pieces:
            self._take(piece)
        return [
            _choice(index, answer.text, answer.reason, self._logprobs(answer))
            for index, answer in enumerate(self._answers)
        ]

    def _take(self, piece: Piece) -> None:
        self.object.count(piece)
        answer = self._answers[piece.index]
        answer.text += piece.text
        answer.reason = piece.finish_reason or ""
        # Harnesses leave out the last token, which they asked for only to have the others scored,
        # so the one that ended the completion must be among them.
        answer.ids += piece.ids if piece.stop is None else [*piece.ids, piece.stop]
        answer.logprobs += [
            each for each in (piece.prompt_logprobs, piece.logprobs) if each is not None
        ]

    def _logprobs(self, answer: _Answer) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        ids = [*answer.prompt, *answer.ids] if self._body.echo else answer.ids
        # Nothing is known of a prompt's first token.
        skipped = 1 if self._body.echo else 0
        found = joined_logprobs(answer.logprobs)
        return plain_logprobs(self._chat, ids, found, self._body.logprobs, skipped)

    async def chunks(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yields the reply's chunks as pieces come; those that come together in one list."""
        due = [
            self.object.of([_choice(index, answer.text, None, None)])
            for index, answer in enumerate(self._answers)
            if answer.text
        ]
        async for piece in pieces:
            # Each chunk has the log-probabilities of its own tokens.
            answer = self._answers[piece.index]
            answer.ids, answer.logprobs = [], []
            self._take(piece)
            begins = bool(self._body.echo and piece.prompt_logprobs is not None)
            logprobs = self._logprobs(answer) if begins else self._own_logprobs(answer)
            reason = piece.finish_reason
            if piece.text or reason is not None or logprobs is not None:
                due.append(self.object.of([_choice(piece.index, piece.text, reason, logprobs)]))
            if due:
                yield due
                due = []
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield [self.object.with_usage([])]

    def _own_logprobs(self, answer: _Answer) -> dict[str, Any] | None:
        if self._body.logprobs is None or not answer.ids:
            return None
        found = joined_logprobs(answer.logprobs)
        return plain_logprobs(self._chat, answer.ids, found, self._body.logprobs, 0)


def _choice(
    index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

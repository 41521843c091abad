"""A model that answers: prompts as tokens in, pieces of text out, from any event loop."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdpo.data.pairs import Message
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.template import NO_KWARGS
from jaxdpo.sampling.logprobs import TokenLogprobs
from jaxdpo.sampling.pool import RowRequest
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.metrics import Metrics
from jaxdpo.serving.scheduler import (
    Begun,
    Drawn,
    Event,
    Failed,
    QueueFull,
    Scheduler,
    Stopping,
    Ticket,
)
from jaxdpo.serving.text import GrowingText

# Characters of a conversation that is encoded in less time than a look at the rows takes.
_SHORT_TEXT = 4000


class AnswerSettings(NamedTuple):
    """The way that answers to one prompt are drawn.

    Attributes:
      max_new_tokens: Most tokens of an answer; None for all that the context has room for.
      temperature: Divides the logits; 0 takes the likeliest token.
      top_k: Draw from this many likeliest tokens; None for all.
      top_p: Draw from the fewest likeliest tokens that have this probability together.
      seed: Of the draws, below 2**32. None draws one: two requests then get different answers.
      stop: Texts that end an answer, and are left out of it.
      samples: How many answers are drawn.
      logprobs: Whether log-probabilities of the answers' tokens are wanted.
      prompt_logprobs: Whether those of the prompt's tokens are.
      timeout: Seconds until the answers are given up; None for never.
      in_pieces: Whether text is wanted as it is drawn, rather than each answer at its end, which
        costs less.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    samples: int = 1
    logprobs: bool = False
    prompt_logprobs: bool = False
    timeout: float | None = None
    in_pieces: bool = True


class Piece(NamedTuple):
    """A part of one of the answers to a prompt.

    Attributes:
      index: The answer's number, below `samples`.
      text: The text that follows that of its pieces before.
      ids: Its tokens. Text is held back until it is certain, so it may come a piece later.
      finish_reason: "stop" if the answer ended by itself or at a stop text, "length" if it was cut
        off; None while it goes on.
      stop: The token that ended the answer, if one did.
      logprobs: Of the tokens, where wanted, and of `stop` behind them.
      prompt_logprobs: Of the prompt's tokens from the second on, in an answer's first piece, where
        wanted.
    """

    index: int
    text: str
    ids: list[int]
    finish_reason: str | None = None
    stop: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: TokenLogprobs | None = None


class AnsweringModel:
    """A model with its name, its tokenizer, and the thread that computes its answers.

    Attributes:
      name: The name that requests have it under.
      chat: Tokenizer and chat template.
      context: Most tokens of a prompt and its answer together.
      created: When it was loaded, in seconds since 1970.
      scheduler: The thread that computes.
      metrics: Where tokens and times are counted.
    """

    def __init__(self, name: str, chat: Chat, context: int, created: int, scheduler: Scheduler):
        """Names a model.

        Args:
          name: The name that requests have it under.
          chat: Tokenizer and chat template.
          context: Most tokens of a prompt and its answer together.
          created: When it was loaded, in seconds since 1970.
          scheduler: The thread that computes.
        """
        self.name, self.chat, self.context = name, chat, context
        self.created, self.scheduler = created, scheduler
        self.metrics = Metrics()

    async def answer(
        self,
        messages: Sequence[Message],
        settings: AnswerSettings | None = None,
        tools: Sequence[dict[str, Any]] = (),
        template_kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> AsyncIterator[Piece]:
        """Yields pieces of the answers to a conversation, as they are drawn.

        Args:
          messages: The conversation.
          settings: How the answers are drawn.
          tools: Function definitions for the template.
          template_kwargs: Further variables for the template.

        Raises:
          RequestError: For what `complete` refuses.
          BadPair: If the chat template refuses the messages.
        """
        ids = await self.encode(messages, tools, template_kwargs)
        async for piece in self.complete([ids], settings or AnswerSettings()):
            yield piece

    async def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        template_kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> list[int]:
        """Encodes a conversation that the assistant is to answer.

        Args:
          messages: The conversation.
          tools: Function definitions for the template.
          template_kwargs: Further variables for the template.

        Raises:
          BadPair: If the chat template refuses the messages.
        """
        # A long conversation takes a while, in which others want their pieces; to hand a short one
        # to a thread takes longer than to encode it.
        if not (tools or template_kwargs) and sum(map(len, map(str, messages))) < _SHORT_TEXT:
            return self.chat.encode(messages, tools, True, template_kwargs)
        return await asyncio.to_thread(self.chat.encode, messages, tools, True, template_kwargs)

    def complete(
        self, prompts: Sequence[Sequence[int]], settings: AnswerSettings
    ) -> AsyncIterator[Piece]:
        """Asks for what follows prompts, and returns its pieces; leaving them gives the rest up.

        The answers to the first prompt have the first `settings.samples` indices, those to the
        second prompt the next ones.

        Args:
          prompts: Token ids.
          settings: How the answers are drawn.

        Raises:
          RequestError: If a prompt is empty or too long, or too many requests wait; the pieces
            raise it if the time is up or the engine fails.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        requests = [each for prompt in prompts for each in self._requests(prompt, settings)]
        # A stop text is looked for here, so tokens are needed as they come.
        in_pieces = settings.in_pieces or bool(settings.stop)
        tickets = [
            # Events of all answers come through one queue, in the order in which they were drawn.
            Ticket(request, lambda event, i=i: events.put_nowait((i, event)), loop, in_pieces)
            for i, request in enumerate(requests)
        ]
        self._submit(tickets)
        self.metrics.add("prompt_tokens_total", sum(map(len, prompts)), model=self.name)
        return self._pieces(tickets, events, settings)

    async def _pieces(
        self,
        tickets: Sequence[Ticket],
        events: "asyncio.Queue[tuple[int, Event]]",
        settings: AnswerSettings,
    ) -> AsyncIterator[Piece]:
        texts = [GrowingText(self.chat.decode, settings.stop) for _ in tickets]
        prompt_logprobs: list[TokenLogprobs | None] = [None] * len(tickets)
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        # An event, and not `asyncio.timeout`: that would cancel whoever reads the pieces, too.
        late = Failed(_late(settings.timeout))
        timer = None
        if settings.timeout is not None:
            timer = loop.call_later(settings.timeout, events.put_nowait, (0, late))
        try:
            left = len(tickets)
            while left:
                index, event = await events.get()
                if isinstance(event, Failed):
                    raise _failure(event.error)
                if isinstance(event, Begun):
                    prompt_logprobs[index] = event.prompt_logprobs
                    continue
                if texts[index].stopped:
                    # Drawn before the thread learnt that a stop text had been written.
                    continue
                first = tickets[index].first_drawn
                if not texts[index].ids and first is not None:
                    waited = max(0.0, first - started)
                    self.metrics.observe("first_token_seconds", waited, model=self.name)
                piece = _piece(index, event, texts[index])
                self.metrics.add("completion_tokens_total", len(piece.ids), model=self.name)
                if piece.finish_reason is not None:
                    left -= 1
                    self.scheduler.leave([tickets[index]])
                yield piece._replace(prompt_logprobs=prompt_logprobs[index])
                prompt_logprobs[index] = None
        finally:
            # Also where the caller has gone, which closes this generator.
            self.scheduler.leave(tickets)
            if timer is not None:
                timer.cancel()

    def _requests(self, prompt: Sequence[int], settings: AnswerSettings) -> list[RowRequest]:
        """Returns a request for each answer, checked against the context."""
        if not len(prompt):
            raise RequestError(400, "the prompt has no tokens; write at least one", "prompt")
        room = self.context - len(prompt)
        wanted = room if settings.max_new_tokens is None else settings.max_new_tokens
        if room < wanted or room < 0 or (room == 0 and settings.max_new_tokens is None):
            raise RequestError(
                400,
                f"the prompt has {len(prompt)} tokens, and with {max(wanted, 1)} new ones it would "
                f"outgrow the context of {self.context}; shorten it, or lower max_tokens",
                code="context_length_exceeded",
            )
        # One seed for all samples, as offline: their numbers tell their draws apart.
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        return [
            RowRequest(
                prompt,
                wanted,
                settings.temperature,
                settings.top_k,
                settings.top_p,
                seed,
                sample,
                settings.logprobs,
                settings.prompt_logprobs,
            )
            for sample in range(settings.samples)
        ]

    def _submit(self, tickets: Sequence[Ticket]) -> None:
        try:
            self.scheduler.submit(tickets)
        except QueueFull:
            raise RequestError(
                429, "too many requests wait already; try again", code="queue_full"
            ) from None
        except Stopping as error:
            raise _failure(error) from None


def _piece(index: int, event: Drawn, text: GrowingText) -> Piece:
    had = len(text.ids)
    new = text.add(event.ids, event.reason is not None)
    # A stop text drops the tokens behind it, and their log-probabilities.
    ids = text.ids[had:]
    stop = None if text.stopped else event.stop
    logprobs = event.logprobs
    if logprobs is not None:
        count = len(ids) + (stop is not None)
        logprobs = TokenLogprobs(*(np.asarray(leaf)[:count] for leaf in logprobs))
    return Piece(index, new, ids, "stop" if text.stopped else event.reason, stop, logprobs)


def _late(timeout: float | None) -> RequestError:
    return RequestError(
        504,
        f"no whole answer within {timeout or 0:g} s; ask for fewer tokens, or raise the server's "
        "timeout",
        code="timeout",
    )


def _failure(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, Stopping):
        return RequestError(503, "the server is about to end; try again", code="stopping")
    # What the runtime says may hold a path or a part of the prompt; the log has it.
    return RequestError(500, "the engine failed; the server's log has the reason", code="engine")

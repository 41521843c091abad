"""Requests that join a running batch: a thread that drives a pool of rows.

The thread owns the pool. A look at what was drawn, every few steps, is when rows of requests that
nobody waits for any more are freed, waiting requests begin in free rows, and tokens are handed to
the event loop that asked. So a new request waits for the next look and never for another's end.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdpo.sampling.logprobs import TokenLogprobs
from jaxdpo.sampling.pool import RowPool, RowRequest, RowTokens
from jaxdpo.sampling.rows import SEGMENT

_log = logging.getLogger(__name__)

# Lengths of rings and of packed prompts are this times a power of two: each is compiled once.
_LENGTH_STEP = 64
# Prompts that are computed together have about so many tokens, unless one alone has more.
_PREFILL_TOKENS = 512
# Seconds between two looks that are aimed at: the longest that a new request waits for its turn,
# and the pause between the pieces of a stream. Shorter ones cost more of the speed.
_LOOK_SECONDS = 0.04
# Seconds that a thread gets to end; a device that hangs never does, and the process must.
_STOP_SECONDS = 10.0


class QueueFull(Exception):
    """So many requests wait that no more may."""


class Stopping(Exception):
    """The server takes no more requests, since it is about to end."""


class Begun(NamedTuple):
    """A completion's prompt has been computed, and its log-probabilities were wanted.

    Attributes:
      prompt_logprobs: Those of its tokens from the second on.
    """

    prompt_logprobs: TokenLogprobs


class Drawn(NamedTuple):
    """New tokens of a completion.

    Attributes:
      ids: Its new tokens, without the stop token.
      logprobs: Of these tokens, where wanted.
      reason: "stop" after a stop token, "length" at the limit; None while it goes on.
      stop: The stop token.
    """

    ids: list[int]
    logprobs: TokenLogprobs | None
    reason: str | None
    stop: int | None


class Failed(NamedTuple):
    """The engine failed; no more events come."""

    error: BaseException


Event = Begun | Drawn | Failed


class Ticket:
    """One completion that is waited for.

    Attributes:
      request: What is wanted.
      deliver: Takes its events, in the event loop of whoever asked.
      loop: That event loop.
      in_pieces: Whether tokens are delivered as they are drawn, rather than all at the end.
      row: Its row, while it has one.
      drawn: How many tokens it has.
      first_drawn: When it had its first, on the clock of `time.perf_counter`; None before.
      gone: Whether nobody waits for it any more.
    """

    def __init__(
        self,
        request: RowRequest,
        deliver: Callable[[Event], None],
        loop: asyncio.AbstractEventLoop,
        in_pieces: bool = True,
    ):
        """Makes a ticket that has no row yet.

        Args:
          request: What is wanted.
          deliver: Takes its events.
          loop: The event loop to call it in.
          in_pieces: Whether tokens are delivered as they are drawn.
        """
        self.request, self.deliver, self.loop = request, deliver, loop
        self.in_pieces = in_pieces
        self.row: int | None = None
        self.drawn = 0
        self.first_drawn: float | None = None
        self.gone = False
        self._kept: list[Drawn] = []

    def due(self, drawn: Drawn) -> Drawn | None:
        """Returns the tokens to deliver now; None while they are kept for the end."""
        if self.in_pieces or not (self._kept or drawn.reason is None):
            return drawn
        self._kept.append(drawn)
        return None if drawn.reason is None else _joined(self._kept)


class Scheduler:
    """The thread that answers with one model."""

    def __init__(
        self,
        make_pool: Callable[[], RowPool],
        stop_token_ids: Sequence[int],
        waiting: int,
        name: str = "model",
    ):
        """Makes a scheduler that does not run yet.

        Args:
          make_pool: Makes the rows; called in the thread, and again after a failure.
          stop_token_ids: Tokens that end a completion.
          waiting: Most requests that wait for a row.
          name: The model's, for the log.
        """
        self._make_pool, self._stops = make_pool, frozenset(stop_token_ids)
        self._most_waiting, self._name = waiting, name
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        # Held for changes of what waits and of the flags, never while the device computes.
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_step = 0.0
        self._shortest = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"answers {self._name}")
            # A process that is told to end must not wait for a device that hangs.
            self._thread.daemon = True
            self._thread.start()

    def give_up(self) -> None:
        """Has the thread end after the look under way; what is not done fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread, and waits until it has ended."""
        self.give_up()
        if self._thread is not None:
            self._thread.join(timeout=_STOP_SECONDS)

    @property
    def counts(self) -> tuple[int, int]:
        """The number of requests that have a row, and of those that wait for one."""
        return len(self._running), len(self._waiting)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queues the completions of one request, all or none.

        Raises:
          QueueFull: If too many wait already.
          Stopping: If the scheduler is about to end.
        """
        with self._changed:
            if self._stopping:
                raise Stopping
            if len(self._waiting) + len(tickets) > self._most_waiting:
                raise QueueFull
            self._waiting.extend(tickets)
            self._changed.notify()

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Gives completions up: their rows are free after the look under way."""
        with self._changed:
            for ticket in tickets:
                ticket.gone = True
            self._changed.notify()

    def _run(self) -> None:
        pool: RowPool | None = None
        while True:
            with self._changed:
                while pool is not None and not (self._stopping or self._waiting or self._running):
                    self._changed.wait()
                stopping = self._stopping
            if stopping:
                self._fail(Stopping())
                return
            # Whatever the device or the runtime raises (out of memory, say) must reach those who
            # wait, and must not end the thread: the next requests get new rows.
            try:
                if pool is None:
                    pool = self._make_pool()
                    self._shortest = pool.slots
                self._look(pool)
            except Exception as error:  # noqa: BLE001
                _log.exception("%s: the engine failed; its rows are made again", self._name)
                self._fail(error)
                pool = None

    def _look(self, pool: RowPool) -> None:
        self._drop_gone(pool)
        self._begin(pool)
        if not self._running:
            return
        steps = self._steps()
        self._fit(pool, steps, ())
        # Not for the whole time if many rows end before: until the next look they decode for
        # nothing, and those who asked could have their answers and ask again.
        free = pool.rows - len(pool.running)
        wanted = free + max(1, len(pool.running) // 8)
        started = time.perf_counter()
        drawn = pool.advance(min(wanted, pool.rows), steps)
        # Fewer steps than were allowed, where all rows ended before.
        done = max((len(tokens.ids) for tokens in drawn), default=steps)
        taken = (time.perf_counter() - started) / max(1, done)
        # A moving average: the first look of a ring's length compiles, which says nothing.
        self._seconds_per_step = (self._seconds_per_step or taken) * 0.5 + taken * 0.5
        events: list[tuple[Ticket, Event]] = []
        for tokens in drawn:
            ticket = self._running[tokens.row]
            event = self._drawn(ticket, tokens)
            if event.reason is not None:
                del self._running[tokens.row]
                if not tokens.stopped:
                    pool.end([tokens.row])
            due = ticket.due(event)
            if due is not None:
                events.append((ticket, due))
        _deliver(events)

    def _steps(self) -> int:
        """Returns how many tokens are drawn until the next look."""
        # No more than the longest row may still draw, and at least a few: a look costs as much as
        # some steps of a small model.
        longest = max(
            ticket.request.max_new_tokens - ticket.drawn for ticket in self._running.values()
        )
        fitting = int(_LOOK_SECONDS / self._seconds_per_step) if self._seconds_per_step else 8
        return min(longest, max(4, min(fitting, SEGMENT)))

    def _drop_gone(self, pool: RowPool) -> None:
        """Frees the rows of completions that nobody waits for, and forgets those that wait."""
        gone = [row for row, ticket in self._running.items() if ticket.gone]
        pool.end(gone)
        for row in gone:
            del self._running[row]
        with self._changed:
            if any(ticket.gone for ticket in self._waiting):
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.gone)

    def _begin(self, pool: RowPool) -> None:
        """Begins waiting requests in free rows."""
        while True:
            free = pool.rows - len(self._running)
            with self._changed:
                first = [ticket for _, ticket in zip(range(free), self._waiting, strict=False)]
            if not first:
                return
            prompts = [len(ticket.request.prompt) for ticket in first]
            self._fit(pool, self._steps() if self._running else 4, prompts)
            # A prompt that several have is computed once.
            total = sum(map(len, {tuple(ticket.request.prompt) for ticket in first}))
            row_length = _length(max(prompts[0], min(total, _PREFILL_TOKENS)))
            events: list[tuple[Ticket, Event]] = []
            requests = [ticket.request for ticket in first]
            for ticket, begun in zip(first, pool.begin(requests, row_length), strict=False):
                with self._changed:
                    self._waiting.remove(ticket)
                ticket.row = begun.row
                self._running[begun.row] = ticket
                if begun.prompt_logprobs is not None:
                    events.append((ticket, Begun(begun.prompt_logprobs)))
                if ticket.request.max_new_tokens == 0:
                    # Only the prompt was to be scored.
                    events.append((ticket, Drawn([], None, "length", None)))
                    pool.end([begun.row])
                    del self._running[begun.row]
            _deliver(events)

    def _fit(self, pool: RowPool, steps: int, prompts: Sequence[int]) -> None:
        """Gives the ring the length that the rows need until the next look.

        The length is what a step costs, so it grows with the rows' tokens rather than being that of
        the longest completion there may be, and shrinks again when the long ones have ended.
        """
        used = [len(t.request.prompt) + t.drawn for t in self._running.values()]
        # And the slot that is written next.
        needed = max(self._shortest, _length(max([0, *used, *prompts]) + steps + 1))
        # A ring that is somewhat too long is left as it is: rows come and go.
        if needed > pool.slots or needed * 2 < pool.slots:
            pool.resize(needed)

    def _drawn(self, ticket: Ticket, tokens: RowTokens) -> Drawn:
        if ticket.first_drawn is None:
            ticket.first_drawn = time.perf_counter()
        ids = tokens.ids[: ticket.request.max_new_tokens - ticket.drawn]
        at = next((i for i, token in enumerate(ids) if token in self._stops), None)
        stop = None if at is None else ids[at]
        ids = ids[:at]
        ticket.drawn += len(ids)
        reason = "stop" if stop is not None else "length" if tokens.stopped else None
        return Drawn(ids, tokens.logprobs, reason, stop)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            tickets = [*self._running.values(), *self._waiting]
            self._running, self._waiting = {}, deque()
        _deliver([(ticket, Failed(error)) for ticket in tickets])


def _joined(parts: Sequence[Drawn]) -> Drawn:
    """Returns a completion's tokens as if they had been drawn between two looks."""
    ids = [token for part in parts for token in part.ids]
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    joined = None
    if logprobs:
        # All three have the tokens' axis first.
        joined = TokenLogprobs(*map(np.concatenate, zip(*logprobs, strict=True)))
    return Drawn(ids, joined, parts[-1].reason, parts[-1].stop)


def _length(count: int) -> int:
    """Returns the smallest length that is compiled and holds so many tokens."""
    length = _LENGTH_STEP
    while length < count:
        length *= 2
    return length


def _deliver(events: Sequence[tuple[Ticket, Event]]) -> None:
    """Hands events to the loops of whoever asked, each loop being woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
    for ticket, event in events:
        if not ticket.gone:
            by_loop.setdefault(ticket.loop, []).append((ticket, event))
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_hand_over, own)
        except RuntimeError:
            # The loop is closed, as a test's or a notebook's may be: nobody waits any more.
            for ticket, _ in own:
                ticket.gone = True


def _hand_over(events: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.deliver(event)

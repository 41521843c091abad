"""Answers on their way: drawn in the background, shown as they grow, kept when they are whole.

An attempt's answers are added to the store together. So a server that is killed while it answers
leaves the turn as it was before, and the page asks again.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxdpo.annotation.answering import Answering
from jaxdpo.annotation.conversation import ConversationTurn, turns_in
from jaxdpo.feedback.preferences import asked_in
from jaxdpo.feedback.store import FeedbackStore

# Names of models and the order of answers must not be guessed from earlier ones.
_random = random.SystemRandom()


@dataclass
class Attempt:
    """Answers that are being drawn.

    Attributes:
      texts: Each answer so far, in the order of the page.
      error: Why there are none; empty if all is well.
      changed: Set at each piece and at the end.
      done: Whether all are whole and kept, or failed.
    """

    texts: list[str]
    error: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    done: bool = False

    async def views(self) -> AsyncIterator[dict[str, Any]]:
        """Yields what there is whenever it has grown."""
        while True:
            # Cleared before it is looked at, so that no change between the two is missed.
            self.changed.clear()
            # The whole text each time: a page that comes late needs no earlier pieces.
            yield {"texts": list(self.texts), "done": self.done, "error": self.error}
            if self.done:
                return
            await self.changed.wait()


class Generating:
    """The attempts that are being drawn, by conversation."""

    def __init__(self, store: FeedbackStore, models: Mapping[str, Answering]) -> None:
        """Begins with none.

        Args:
          store: Where whole answers are kept.
          models: Name ↦ model.
        """
        self._store, self._models = store, models
        self._running: dict[str, tuple[Attempt, asyncio.Task[None]]] = {}
        # Until it is asked again; a page that comes late must not ask for ever.
        self._failed: dict[str, str] = {}

    def error(self, conversation: str) -> str:
        """Returns why a conversation's last attempt failed; nothing if it did not."""
        return self._failed.get(conversation, "")

    def attempt(self, conversation: str) -> Attempt | None:
        """Returns the attempt that a conversation waits for, if any."""
        running = self._running.get(conversation)
        return running[0] if running else None

    def begin(
        self, conversation: str, number: int, answers: int, models: Sequence[str] = ()
    ) -> Attempt | None:
        """Begins an attempt of a conversation's last turn, unless it is there or under way.

        Args:
          conversation: Its name.
          number: The attempt's number, from 0: asking twice for one attempt begins it once.
          answers: How many answers stand side by side.
          models: Who answers, one model each; by default drawn from all.
        """
        # Two tabs may ask for one attempt; the second one watches the first one's.
        if conversation in self._running:
            return self._running[conversation][0]
        turn = turns_in(self._store.events(conversation))[-1]
        if len(turn.state.attempts) != number:
            return None
        self._failed.pop(conversation, None)
        drawn = list(models) or draw_models(sorted(self._models), answers)
        # The same two models in the same places would tell who is who after a few turns.
        _random.shuffle(drawn)
        attempt = Attempt([""] * len(drawn))
        task = asyncio.create_task(self._draw(conversation, turn, attempt, drawn))
        self._running[conversation] = attempt, task
        return attempt

    async def _draw(
        self, conversation: str, turn: ConversationTurn, attempt: Attempt, models: Sequence[str]
    ) -> None:
        try:
            # A group cancels the other answers where one fails: half an attempt is none.
            async with asyncio.TaskGroup() as group:
                for place, model in enumerate(models):
                    group.create_task(self._stream(turn, attempt, place, self._models[model]))
            events = [
                generated_event(conversation, turn, (place, model), text)
                for place, (model, text) in enumerate(zip(models, attempt.texts, strict=True))
            ]
            # In a thread: a commit waits for the disk, and others want their pieces meanwhile.
            await asyncio.to_thread(self._store.append, events)
        except* asyncio.CancelledError:
            attempt.error = "the server is about to end"
        except* Exception as group:  # noqa: BLE001
            # Whatever a model or the disk fails with, the page must not wait for ever.
            attempt.error = "; ".join(str(error) for error in group.exceptions)
        finally:
            attempt.done = True
            if attempt.error:
                self._failed[conversation] = attempt.error
            attempt.changed.set()
            del self._running[conversation]

    async def _stream(
        self, turn: ConversationTurn, attempt: Attempt, place: int, model: Answering
    ) -> None:
        pieces = model.answer(asked_in(turn.prompt), turn.prompt.get("tools") or ())
        async for piece in pieces:
            attempt.texts[place] += piece
            attempt.changed.set()
        if not attempt.texts[place].strip():
            # An empty answer can be neither chosen nor rejected by a pair.
            attempt.texts[place] = "(empty answer)"

    async def stop(self) -> None:
        """Gives up what is under way."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def draw_models(models: Sequence[str], answers: int) -> list[str]:
    """Draws who answers: different models as long as there are any, then the same ones again."""
    shuffled = _random.sample(list(models), len(models))
    return list(itertools.islice(itertools.cycle(shuffled), answers))


def generated_event(
    conversation: str, turn: ConversationTurn, shown: tuple[int, str | None], content: Any
) -> dict[str, Any]:
    """Returns the event of one answer of the next attempt.

    Args:
      conversation: Name of the conversation.
      turn: Its last turn.
      shown: The answer's place, from 0, and its model, if that is known.
      content: What it says.
    """
    place, model = shown
    attempt = len(turn.state.attempts)
    # The name follows from the place, so the same attempt can never be added twice.
    name = f"{turn.prompt['id']}/{attempt}/{place}"
    # The log says `regenerated` of the first answer of a further attempt alone.
    again = attempt > 0 and place == 0
    return {
        "id": name,
        "conversation": conversation,
        "event": "regenerated" if again else "generated",
        "output": name,
        "content": content,
        "place": place,
        **({} if model is None else {"model": model}),
    }

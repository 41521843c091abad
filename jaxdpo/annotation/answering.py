"""The models of a studio: anything that streams the text of an answer."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from jaxdpo.data.pairs import Message


class Answering(Protocol):
    """A model that answers conversations."""

    def answer(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> AsyncIterator[str]:
        """Yields the pieces of one answer, another one each time it is asked.

        Args:
          messages: The conversation, its last message not the assistant's.
          tools: Function definitions for the chat template.
        """
        ...

    def start(self) -> None:
        """Starts what computes the answers."""

    def stop(self) -> None:
        """Ends it."""

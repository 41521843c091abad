"""Objects that replies are made of: what every one of them says, and what it cost."""

import time
import uuid
from typing import Any

from jaxdpo.serving.answering import Piece


class ReplyObject:
    """The common part of a request's reply, or of all the chunks of one."""

    def __init__(self, prefix: str, kind: str, model: str, prompt_tokens: int):
        """Gives the reply a name.

        Args:
          prefix: Begins its id.
          kind: Its `object`.
          model: Name of the model.
          prompt_tokens: Tokens of the prompts.
        """
        self._common = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._prompt_tokens, self._completion_tokens = prompt_tokens, 0

    def count(self, piece: Piece) -> None:
        """Counts a piece's tokens."""
        self._completion_tokens += len(piece.ids)

    def of(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns a chunk with these choices."""
        return {**self._common, "choices": choices}

    def with_usage(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns a whole reply, or the last chunk of one, with what it cost."""
        # The token that ended an answer is not counted, as it is no part of what was answered.
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }
        return {**self.of(choices), "usage": usage}

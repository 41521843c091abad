"""Text that grows with its tokens, of which only what is certain is sent."""

from collections.abc import Callable, Sequence

from jaxdpo.sampling.answers import before
from jaxdpo.sampling.engine import up_to_text

# The character that stands for bytes that are no text, or not yet: the first ones of a character
# whose others are in the next token.
_UNFINISHED = "\ufffd"


class GrowingText:
    """The text of a completion under way.

    Held back are the beginning of a character, and what may turn out to be the beginning of a stop
    text.

    Attributes:
      ids: The tokens so far, up to the one that wrote a stop text.
      stopped: Whether a stop text was written.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()):
        """Begins an empty text.

        Args:
          decode: Token ids → text.
          stops: Texts that end a completion, and are left out of it.
        """
        self._decode, self._stops = decode, stops
        self.ids: list[int] = []
        self.stopped = False
        self._sent = ""

    def add(self, ids: Sequence[int], ended: bool) -> str:
        """Takes new tokens, and returns the text that is certain and was not returned before.

        Args:
          ids: The new tokens.
          ended: Whether they are the last ones; then nothing is held back.
        """
        self.ids += ids
        count = up_to_text(self._stops, self.ids, self._decode)
        if count is not None:
            self.stopped = True
            del self.ids[count:]
        # All tokens, and not the new ones alone: decoders treat the first token differently, and
        # write a character only when all of its tokens are there.
        text = before(self._stops, self._decode(self.ids))
        if not (ended or self.stopped):
            text = self._certain(text)
        new = text[len(self._sent) :] if text.startswith(self._sent) else ""
        self._sent += new
        return new

    def _certain(self, text: str) -> str:
        text = text.rstrip(_UNFINISHED)
        # The longest end of the text that a stop text begins with.
        held = max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
        return text[: len(text) - held]

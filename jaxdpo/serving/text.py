"""Text that grows with its tokens, of which only what is certain is sent."""

from collections.abc import Callable, Sequence

from jaxdpo.sampling.answers import before

# The character that stands for bytes that are no text, or not yet: the first ones of a character
# whose others are in the next token.
_UNFINISHED = "\ufffd"
# Tokens that are decoded anew with each new one, at least. Decoders treat the first token of a text
# differently, so new tokens are decoded behind some that are known already.
_WINDOW = 32


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
        self._longest_stop = max(map(len, stops), default=0)
        self.ids: list[int] = []
        self.stopped = False
        # The text that is certain, and how much of it was returned.
        self._text, self._sent = "", 0
        # The window: its first token, how much of its text is in `_text`, and the last token known
        # to end a character, which the next window may begin behind.
        self._from, self._taken, self._whole_until = 0, 0, 0

    def add(self, ids: Sequence[int], ended: bool) -> str:
        """Takes new tokens, and returns the text that is certain and was not returned before.

        Args:
          ids: The new tokens.
          ended: Whether they are the last ones; then nothing is held back.
        """
        had, looked = len(self.ids), max(0, len(self._text) - self._longest_stop)
        self.ids += ids
        if ended:
            self._read_whole()
        else:
            self._read_new()
        if any(self._text.find(stop, looked) >= 0 for stop in self._stops):
            self.stopped = True
            self._end_at_stop(had)
        end = len(self._text)
        if not (ended or self.stopped):
            end -= self._held_back()
        new = self._text[self._sent : end]
        self._sent += len(new)
        return new

    def _read_whole(self) -> None:
        text = self._decode(self.ids)
        # Decoders that change a text as it grows (few tidy up spaces) may disagree with what was
        # sent; what the pieces make together then ends as it began.
        if text.startswith(self._text[: self._sent]):
            self._text = text
        else:
            self._text += self._decode(self.ids[self._from :])[self._taken :]

    def _read_new(self) -> None:
        window = self._decode(self.ids[self._from :])
        certain = window.rstrip(_UNFINISHED)
        self._text += certain[self._taken :]
        self._taken = max(self._taken, len(certain))
        if len(certain) < len(window):
            return
        if len(self.ids) - self._from > _WINDOW:
            # Of tokens without a text (control tokens are left out) no window can begin.
            last = self._decode(self.ids[self._whole_until :])
            if last:
                self._from, self._taken = self._whole_until, len(last)
        self._whole_until = len(self.ids)

    def _end_at_stop(self, had: int) -> None:
        """Drops the tokens behind the one that wrote a stop text, which is among the new ones."""
        counts = range(had + 1, len(self.ids) + 1)
        texts = ((count, self._decode(self.ids[:count])) for count in counts)
        wrote = (count for count, text in texts if any(stop in text for stop in self._stops))
        del self.ids[next(wrote, len(self.ids)) :]
        self._text = before(self._stops, self._text)

    def _held_back(self) -> int:
        """Returns the length of the longest end of the text that a stop text begins with."""
        sizes = (
            size
            for stop in self._stops
            for size in range(1, min(len(stop), len(self._text) + 1))
            if self._text.endswith(stop[:size])
        )
        return max(sizes, default=0)

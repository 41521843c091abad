"""Warnings about what was read: it is well formed, and probably not what was meant."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message, PreferencePair
from jaxdpo.data.warnings import breaks_off, is_invisible

# An answer of fewer characters may well be a name or a number, without a full stop.
_LONG = 200
# This share of long answers breaks off where answers were cut to a length.
_CUT_SHARE = 0.3
_MANY = 10


class Doubts:
    """Takes note of pairs as they go by, and warns at the end."""

    def __init__(self) -> None:
        self._labels: Counter[bool] = Counter()
        self._blank: list[str] = []
        self._long = self._cut = 0

    def merge(self, other: "Doubts") -> None:
        """Takes over what was noted of pairs that follow."""
        self._labels += other._labels
        self._blank += other._blank
        self._long += other._long
        self._cut += other._cut

    def to_json(self) -> dict[str, Any]:
        """Returns what was noted, as values of JSON."""
        labels = {str(label): count for label, count in self._labels.items()}
        return {"labels": labels, "blank": self._blank, "long": self._long, "cut": self._cut}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Doubts":
        """Restores what `to_json` returned."""
        doubts = cls()
        doubts._labels.update({key == "True": count for key, count in values["labels"].items()})
        doubts._blank += values["blank"]
        doubts._long, doubts._cut = values["long"], values["cut"]
        return doubts

    def add(self, pair: PreferencePair) -> None:
        """Takes note of one pair."""
        if pair.label is not None:
            self._labels[pair.label] += 1
        if pair.prompt and not _has_text(pair.prompt[-1]) and not any(map(_has_text, pair.prompt)):
            self._blank.append(pair.source)
        for answer in (pair.chosen, pair.rejected):
            if answer:
                self._add_answer(answer, pair.source)

    def _add_answer(self, answer: Sequence[Message], source: str) -> None:
        text = answer[-1].get("content", "")
        if not text[:1].isalnum() and not any(_has_text(m) or "tool_calls" in m for m in answer):
            self._blank.append(source)
        if len(text) > _LONG:
            self._long += 1
            self._cut += breaks_off(text)

    def warnings(self) -> Iterator[str]:
        """Yields what looks wrong."""
        # KTO's reference point is estimated from both kinds; with one alone it learns a constant.
        if len(self._labels) == 1:
            (label,) = self._labels
            yield (
                f"all {self._labels.total()} labelled answers are {str(label).lower()}; KTO needs "
                "answers of both labels to learn a difference"
            )
        if self._blank:
            yield (
                f"{len(self._blank)} prompts or answers hold only white space or characters "
                f"without width (first at {self._blank[0]})"
            )
        if self._long >= _MANY and self._cut > _CUT_SHARE * self._long:
            yield (
                f"{self._cut} of {self._long} long answers end in the middle of a sentence; were "
                "they cut at a length when they were sampled?"
            )


def _has_text(message: Message) -> bool:
    text = message.get("content") or ""
    # Content in parts, and calls of tools, are checked where messages are parsed.
    return not isinstance(text, str) or (bool(text) and not is_invisible(text))

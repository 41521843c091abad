"""Turns a chat application's event log into records of the four sources that come from people.

One append-only JSON Lines file; a line is an event, with the conversation it belongs to and
the time (ISO 8601 with its offset):

    {"event": "prompt",      "conversation": "c1", "time": "2026-05-04T09:00Z", "messages": [...]}
    {"event": "generated",   "conversation": "c1", "time": ..., "output": "o1", "content": "At 8."}
    {"event": "regenerated", "conversation": "c1", "time": ..., "output": "o2", "content": "At 9."}
    {"event": "selected",    "conversation": "c1", "time": ..., "output": "o2"}
    {"event": "edited",      "conversation": "c1", "time": ..., "output": "o2", "content": "9 am."}
    {"event": "accepted",    "conversation": "c1", "time": ..., "output": "o2"}
    {"event": "abandoned",   "conversation": "c1", "time": ...}

A `prompt` begins a turn and may have `tools`, `split` and `metadata`. Every output that is shown is
`generated`, with a name of its own; `regenerated` is the first of a further attempt, so two answers
side by side are two times `generated`. `edited` may have `"by": "expert"`. Any event may have an
`annotator`, and an output its `model`.

What a turn says: an output that was selected is preferred to those of its attempt; one that was
accepted, to earlier and later attempts; the last edit of the accepted output, and an expert's edit
of any, to the output itself. A turn that was abandoned or does not end says nothing but what an
expert made of it, and one that contradicts itself nothing at all.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.reading.said import need
from jaxdpo.errors import nearest
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.sources import SourceName

_EVENT = ("event", "conversation", "time", "annotator")
_KEYS = {
    "prompt": ("messages", "tools", "functions", "split", "metadata", "chat_template_kwargs"),
    "generated": ("output", "content", "model"),
    "regenerated": ("output", "content", "model"),
    "selected": ("output",),
    "edited": ("output", "content", "by"),
    "accepted": ("output",),
    "abandoned": (),
}
_OPTIONAL = ("tools", "functions", "split", "metadata", "chat_template_kwargs", "model", "by")


class Event(NamedTuple):
    """One line of a log: its fields, when it happened, and where it stands, as `file:line`."""

    value: dict[str, Any]
    time: datetime
    where: str


class Derived(NamedTuple):
    """A record of one of the sources, and where the turn begins that it comes from."""

    source: SourceName
    record: dict[str, Any]
    where: str


def parse_event(value: dict[str, Any], where: str) -> Event:
    """Checks one event and returns it.

    Raises:
      BadPair: If it is not as documented.
    """
    event = need(value, "event", "conversation", "time")[0]
    if event not in _KEYS:
        hint = nearest(event, _KEYS) if isinstance(event, str) else ""
        raise BadPair("event", f"event is {show(event)}; write one of {', '.join(_KEYS)}{hint}")
    known = (*_EVENT, *_KEYS[event])
    for key in value:
        if key not in known:
            raise BadPair(
                "unknown-key", f"{event!r} has the unknown key {show(key)}{nearest(key, known)}"
            )
    need(value, *(key for key in _KEYS[event] if key not in _OPTIONAL))
    for key in ("conversation", "output"):
        if not isinstance(value.get(key, ""), str):
            raise BadPair("name-type", f"{key} is {show(value[key])}; write a string")
    if value.get("by", "user") not in ("user", "expert"):
        raise BadPair("by", f"by is {show(value['by'])}; write 'user' or 'expert'")
    return Event(value, _parse_time(value["time"]), where)


def _parse_time(text: Any) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise BadPair(
            "time", f"time is {show(text)}; write it as 2026-05-04T09:00:00Z, with its offset"
        )
    return time


def turns_of(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Yields the turns of every conversation, each with its events in the order of time.

    Events of the same time keep the order of the file, and repeated lines count once. Events before
    a conversation's first prompt are a turn without one.
    """
    conversations: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        conversations[event.value["conversation"]].append(event)
    for conversation in conversations.values():
        turn: list[Event] = []
        # Applications send an event again when they are not sure that it arrived.
        seen: list[dict[str, Any]] = []
        for event in sorted(conversation, key=lambda event: event.time):
            if event.value["event"] == "prompt" and event.value not in seen:
                if turn:
                    yield turn
                turn, seen = [], []
            if event.value not in seen:
                turn.append(event)
                seen.append(event.value)
        yield turn


def records_of(turn: Sequence[Event]) -> list[Derived]:
    """Returns the feedback of one turn, as records of the sources.

    Raises:
      NoPair: If it was abandoned, does not end, or contradicts itself; the code says which.
    """
    first = turn[0]
    if first.value["event"] != "prompt":
        raise NoPair("contradictory: no prompt")
    state = _Turn()
    for event in turn[1:]:
        _follow(state, event.value)
    state.check()
    known = {key: first.value[key] for key in _KEYS["prompt"] if key in first.value}
    known |= {"conversation": first.value["conversation"], "time": turn[-1].value["time"]}
    # The last person who did something: later acts are the ones that decide.
    annotators = [e.value["annotator"] for e in turn if e.value.get("annotator") is not None]
    known |= {"annotator": annotators[-1]} if annotators else {}
    found = _of_experts(state) + ([] if state.abandoned else _of_user(state))
    if not found:
        ended = "accepted-first" if state.accepted else "unfinished"
        raise NoPair("abandoned" if state.abandoned else ended)
    return [Derived(source, {**known, **record}, first.where) for source, record in found]


@dataclass
class _Turn:
    """The state of a turn after the events so far.

    Attributes:
      outputs: The answers by name.
      attempts: Their names, side by side in each attempt.
      selected: Which one was selected, by the number of its attempt.
      edits: The user's last edit of each.
      expert: The last edit of each by each expert.
      accepted: Which one was accepted.
      abandoned: Whether the user left.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    attempts: list[list[str]] = field(default_factory=list)
    selected: dict[int, str] = field(default_factory=dict)
    edits: dict[str, Any] = field(default_factory=dict)
    expert: dict[tuple[str, Any], Any] = field(default_factory=dict)
    accepted: str | None = None
    abandoned: bool = False

    def attempt_of(self, output: str) -> int:
        """Returns the number of the attempt that an output belongs to."""
        return next(i for i, attempt in enumerate(self.attempts) if output in attempt)

    def check(self) -> None:
        """Refuses a turn whose end contradicts what came before it."""
        if self.accepted is None:
            return
        # To accept is to select, where nothing was selected in that attempt.
        attempt = self.attempt_of(self.accepted)
        if self.selected.setdefault(attempt, self.accepted) != self.accepted:
            raise NoPair("contradictory: another was accepted than selected")
        if set(self.edits) - {self.accepted}:
            raise NoPair("contradictory: another was accepted than edited")


def _follow(turn: _Turn, event: dict[str, Any]) -> None:
    """Takes account of one event."""
    name, output = event["event"], event.get("output")
    by_expert = event.get("by") == "expert"
    # Experts review conversations after they ended; to accept twice is a repeated click.
    ended = turn.accepted is not None or turn.abandoned
    if ended and not by_expert and (name, output) != ("accepted", turn.accepted):
        raise NoPair("contradictory: goes on after its end")
    if name == "abandoned":
        turn.abandoned = True
    elif name in ("generated", "regenerated"):
        _show(turn, event["output"], event["content"], again=name == "regenerated")
    elif output not in turn.outputs:
        raise NoPair("contradictory: unknown output")
    elif name == "accepted":
        turn.accepted = output
    elif name == "selected":
        if turn.selected.setdefault(turn.attempt_of(output), output) != output:
            raise NoPair("contradictory: two were selected")
    elif by_expert:
        turn.expert[output, event.get("annotator")] = event["content"]
    else:
        turn.edits[output] = event["content"]


def _show(turn: _Turn, output: str, content: Any, again: bool) -> None:
    if output in turn.outputs:
        raise NoPair("contradictory: an output was generated twice")
    if again and not turn.attempts:
        raise NoPair("contradictory: regenerated before anything was generated")
    if again or not turn.attempts:
        turn.attempts.append([])
    turn.attempts[-1].append(output)
    turn.outputs[output] = content


_Found = list[tuple[SourceName, dict[str, Any]]]


def _of_experts(turn: _Turn) -> _Found:
    return [
        ("expert_edits", {"output": turn.outputs[output], "edited": edited, "annotator": who})
        for (output, who), edited in turn.expert.items()
    ]


def _of_user(turn: _Turn) -> _Found:
    found: _Found = []
    for number, attempt in enumerate(turn.attempts):
        # One answer alone was not preferred to anything.
        if number in turn.selected and len(attempt) > 1:
            outputs = [turn.outputs[output] for output in attempt]
            selected = attempt.index(turn.selected[number])
            found.append(("user_choice", {"outputs": outputs, "selected": selected}))
    if turn.accepted is None:
        return found
    # Answers beside the accepted one were not tried again: `user_choice` has them.
    beside = set(turn.attempts[turn.attempt_of(turn.accepted)]) - {turn.accepted}
    tried = [output for output in turn.outputs if output not in beside]
    if len(tried) > 1:
        attempts = [turn.outputs[output] for output in tried]
        accepted = tried.index(turn.accepted)
        found.append(("regenerations", {"attempts": attempts, "accepted": accepted}))
    if turn.accepted in turn.edits:
        draft, saved = turn.outputs[turn.accepted], turn.edits[turn.accepted]
        found.append(("user_edits", {"draft": draft, "saved": saved}))
    return found

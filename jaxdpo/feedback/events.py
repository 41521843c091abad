"""A chat application's event log, read line by line and put together to turns.

One append-only JSON Lines file; a line is an event, with the conversation it belongs to and the
time (ISO 8601 with its offset, or seconds since 1970):

    {"event": "prompt",      "conversation": "c1", "time": "2026-05-04T09:00Z", "messages": [...]}
    {"event": "generated",   "conversation": "c1", "time": ..., "output": "o1", "content": "At 8."}
    {"event": "regenerated", "conversation": "c1", "time": ..., "output": "o2", "content": "At 9."}
    {"event": "selected",    "conversation": "c1", "time": ..., "output": "o2"}
    {"event": "tie",         "conversation": "c1", "time": ..., "outputs": ["o1", "o3"]}
    {"event": "all_bad",     "conversation": "c1", "time": ..., "outputs": ["o1", "o3"]}
    {"event": "thumbs",      "conversation": "c1", "time": ..., "output": "o2", "label": true}
    {"event": "judged",      "conversation": "c1", "time": ..., "output": "o2",
     "criterion": "polite", "passed": true, "explanation": "It greets."}
    {"event": "edited",      "conversation": "c1", "time": ..., "output": "o2", "content": "9 am."}
    {"event": "accepted",    "conversation": "c1", "time": ..., "output": "o2"}
    {"event": "note",        "conversation": "c1", "time": ..., "text": "Ask the museum."}
    {"event": "skipped",     "conversation": "c1", "time": ...}
    {"event": "undo",        "conversation": "c1", "time": ..., "undoes": "e7"}
    {"event": "abandoned",   "conversation": "c1", "time": ...}

A `prompt` begins a turn, with `messages` or the text in `prompt`, and may have `tools`, `split` and
`metadata`. Every output that is shown is `generated`, with a name of its own; `regenerated` is the
first of a further attempt, so two answers side by side are two times `generated`. An output may
have its `model`, and its `place` on the page, from 0. `edited` may have `"by": "expert"`, and a
`note` the `output` that it is about. Any event may have an `annotator`, and an `id` of its own:
events of one id count once, and an `undo` may name the id that it takes back. Without `undoes` it
takes back its annotator's last act. Keys that are not known are kept with the pair.

`jaxdpo.feedback.turns` says what a turn means.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.reading.said import need
from jaxdpo.errors import nearest
from jaxdpo.feedback.preferences import asked_in, moment_of, unknown_keys

_EVENT = ("event", "conversation", "time", "annotator", "id")
PROMPT_KEYS = ("messages", "prompt", "tools", "functions", "split", "metadata",
               "chat_template_kwargs")  # fmt: skip
KEYS: dict[str, tuple[str, ...]] = {
    "prompt": PROMPT_KEYS,
    "generated": ("output", "content", "model", "place"),
    "regenerated": ("output", "content", "model", "place"),
    "selected": ("output",),
    "tie": ("outputs",),
    "all_bad": ("outputs",),
    "thumbs": ("output", "label"),
    "judged": ("output", "criterion", "passed", "explanation"),
    "edited": ("output", "content", "by"),
    "accepted": ("output",),
    "note": ("text", "output"),
    "skipped": (),
    "undo": ("undoes",),
    "abandoned": (),
}
# `label` and `passed` may be null: such an act takes an earlier one back.
_OPTIONAL = (*PROMPT_KEYS, "model", "place", "by", "label", "passed", "explanation", "undoes")
_NAMES = ("conversation", "output", "id", "undoes", "criterion", "explanation", "text")


class Event(NamedTuple):
    """One line of a log: its fields, when it happened, and where it stands, as `file:line`."""

    value: dict[str, Any]
    time: datetime
    where: str

    @property
    def known(self) -> tuple[str, ...]:
        """The keys that an event of this kind may have."""
        return (*_EVENT, *KEYS[self.value["event"]])


def parse_event(value: dict[str, Any], where: str) -> Event:
    """Checks one event and returns it.

    Raises:
      BadPair: If it is not as documented.
    """
    event = need(value, "event", "conversation", "time")[0]
    if not isinstance(event, str) or event not in KEYS:
        hint = nearest(event, KEYS) if isinstance(event, str) else ""
        raise BadPair("event", f"event is {show(event)}; write one of {', '.join(KEYS)}{hint}")
    # An application's own fields are welcome; what is almost a known one is a mistake.
    unknown_keys(value, (*_EVENT, *KEYS[event]))
    # A note may be about one answer or about the turn; every other act needs to say which.
    optional = (*_OPTIONAL, "output") if event == "note" else _OPTIONAL
    need(value, *(key for key in KEYS[event] if key not in optional))
    for key in _NAMES:
        if not isinstance(value.get(key) or "", str):
            raise BadPair("name-type", f"{key} is {show(value[key])}; write a string")
    if value.get("by", "user") not in ("user", "expert"):
        raise BadPair("by", f"by is {show(value['by'])}; write 'user' or 'expert'")
    for key in ("label", "passed"):
        if not isinstance(value.get(key), bool | None):
            raise BadPair(key, f"{key} is {show(value[key])}; write true or false")
    place = value.get("place")
    if place is not None and (type(place) is not int or place < 0):
        raise BadPair("place", f"place is {show(place)}; write a number from 0")
    outputs = value.get("outputs", [""])
    if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) for o in outputs):
        raise BadPair("outputs-type", f"outputs is {show(outputs)}; write a list of names")
    if event == "prompt":
        asked_in(value)
    time = moment_of(value["time"])
    if time is None:
        raise BadPair(
            "time",
            f"time is {show(value['time'])}; write it as 2026-05-04T09:00:00Z, with its offset, or "
            "as seconds since 1970",
        )
    return Event(value, time, where)


def turns_of(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Yields the turns of every conversation, each with its events in the order of time.

    Events of the same time keep the order of the file, and repeated lines count once. Events before
    a conversation's first prompt are a turn without one.
    """
    conversations: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        conversations[event.value["conversation"]].append(event)
    # Logs of several servers are often put together, so the file's order says little.
    for conversation in conversations.values():
        turn: list[Event] = []
        # Applications send an event again when they are not sure that it arrived.
        seen: list[dict[str, Any]] = []
        for event in sorted(conversation, key=lambda event: event.time):
            # What has an id of its own is known by it, though its second sending has another time.
            same = {k: v for k, v in event.value.items() if k != "time" or "id" not in event.value}
            if same in seen:
                continue
            if event.value["event"] == "prompt":
                if turn:
                    yield turn
                turn, seen = [], []
            turn.append(event)
            seen.append(same)
        yield turn

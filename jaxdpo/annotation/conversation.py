"""A conversation as the page shows it: a function of its events, and of nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.feedback.preferences import NoPair, asked_in
from jaxdpo.feedback.turns import Turn, state_of

Event = dict[str, Any]
# Acts that are no comparison or verdict, but that an undo takes back as well.
ACTS = ("selected", "tie", "all_bad", "thumbs", "judged", "edited", "accepted", "note", "skipped",
        "abandoned")  # fmt: skip


@dataclass(frozen=True)
class ConversationTurn:
    """One turn: the event of its prompt, all its events, and their state."""

    prompt: Event
    events: tuple[Event, ...]
    state: Turn

    @property
    def kept(self) -> Any:
        """The text that the conversation goes on with; None before there is one."""
        state = self.state
        # What was edited is what the user has in hand, so the conversation goes on with that.
        if state.accepted is not None:
            return state.edits.get(state.accepted, state.content(state.accepted))
        if not state.attempts:
            return None
        verdict = state.verdicts.get(len(state.attempts) - 1)
        if verdict and verdict["event"] == "selected":
            return state.content(verdict["output"])
        # Nothing tells several answers apart where none was preferred; after a tie either will do.
        if len(state.attempts[-1]) == 1 or verdict:
            return state.content(state.attempts[-1][0])
        return None


def turns_in(events: Sequence[Event]) -> list[ConversationTurn]:
    """Returns the turns of one conversation."""
    begun: list[list[Event]] = []
    for event in events:
        if event["event"] == "prompt":
            begun.append([])
        # Events before a first prompt belong to no turn; `collect` counts them.
        if begun:
            begun[-1].append(event)
    return [ConversationTurn(turn[0], tuple(turn), _state(turn)) for turn in begun]


def _state(turn: Sequence[Event]) -> Turn:
    try:
        return state_of(turn)
    except NoPair:
        # The studio writes no such events; a file that was changed by hand shows its prompt alone.
        return Turn()


def messages_after(turns: Sequence[ConversationTurn]) -> list[Message]:
    """Returns the conversation up to and with the last turn's answer."""
    if not turns:
        return []
    last = turns[-1]
    return [*asked_in(last.prompt), {"role": "assistant", "content": last.kept}]


def shown(turns: Sequence[ConversationTurn], annotator: str) -> list[dict[str, Any]]:
    """Returns what the page shows of each turn, as JSON values.

    Names of models are left out until the answers of their attempt were compared, so that nobody
    can judge by them.

    Args:
      turns: The turns.
      annotator: Whose acts may be undone.
    """
    return [_shown(turn, annotator) for turn in turns]


def _shown(turn: ConversationTurn, annotator: str) -> dict[str, Any]:
    state = turn.state
    undone = {event.get("undoes") for event in turn.events if event["event"] == "undo"}
    acts = [
        {"id": event["id"], "event": event["event"]}
        for event in turn.events
        if event["event"] in ACTS
        and event["id"] not in undone
        and event.get("annotator") == annotator
    ]
    return {
        "id": turn.prompt["id"],
        "messages": asked_in(turn.prompt),
        "attempts": [
            [_output(turn, output, number) for output in _by_place(state, attempt)]
            for number, attempt in enumerate(state.attempts)
        ],
        "accepted": state.accepted,
        "ended": state.ended,
        "notes": state.notes,
        "acts": acts,
    }


def _by_place(state: Turn, attempt: Sequence[str]) -> list[str]:
    return sorted(attempt, key=lambda output: state.outputs[output].get("place", 0))


def _output(turn: ConversationTurn, output: str, attempt: int) -> dict[str, Any]:
    state = turn.state
    verdict = state.verdicts.get(attempt)
    # Undoing a comparison hides the names again, from whoever comes to it next.
    decided = bool(verdict) or state.accepted is not None
    # Several experts may have edited one answer; the page shows the last of them.
    expert = [text for (name, _), text in state.expert.items() if name == output]
    return {
        "output": output,
        "content": _text(state.content(output)),
        "model": state.outputs[output].get("model") if decided else None,
        "verdict": _verdict(verdict, output),
        "edited": _text((expert or [state.edits.get(output)])[-1]),
        "label": next((label for (name, _), label in state.labels.items() if name == output), None),
        "judgements": {
            criterion: {"passed": event["passed"], "explanation": event.get("explanation") or ""}
            for (name, criterion, _), event in state.judgements.items()
            if name == output
        },
    }


def _verdict(verdict: Event | None, output: str) -> str | None:
    if verdict is None:
        return None
    if verdict["event"] == "selected":
        return "chosen" if verdict["output"] == output else "rejected"
    return verdict["event"]


def _text(content: Any) -> str | None:
    """Returns the text of an answer; an answer by several messages or calls shows all of them."""
    if content is None or isinstance(content, str):
        return content
    messages = content if isinstance(content, list) else [content]
    parts = [str(message.get("content") or message.get("tool_calls") or "") for message in messages]
    return "\n".join(parts)

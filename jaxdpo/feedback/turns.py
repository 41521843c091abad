"""Derives the feedback of one turn from its events, as records of the sources.

An output that was selected is preferred to those of its attempt; one that was accepted, to earlier
and later attempts, and, unless `accepted=keeps`, to those beside it, as if it had been selected.
The last edit of the accepted output, and an expert's edit of any, are preferred to the output
itself. A tie makes no pair. Thumbs label an output by itself, and `all_bad` labels each of its
outputs as bad. A criterion's judgements are those of the source `criteria`.

The last act counts where a mind was changed: a later selection, tie or "all bad" replaces an
earlier one of the same attempt, a later acceptance an earlier one, and whoever regenerates after
accepting has not accepted yet. An act that was undone never was. A turn that was abandoned, skipped
or does not end says nothing but labels, judgements, and what an expert made of it; one whose events
cannot have happened so says nothing at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxdpo.feedback.events import PROMPT_KEYS, Event
from jaxdpo.feedback.preferences import FeedbackConfig, NoPair
from jaxdpo.feedback.sources import SourceName

_SHOWN = ("generated", "regenerated")
# Between one attempt's outputs, of which only the last act counts.
_VERDICTS = ("selected", "tie", "all_bad")


class Derived(NamedTuple):
    """A record of one of the sources, and where the turn begins that it comes from."""

    source: SourceName
    record: dict[str, Any]
    where: str


_Found = list[tuple[SourceName, dict[str, Any]]]


@dataclass
class Turn:
    """The state of a turn after its events.

    Attributes:
      outputs: The answers by name; each the event that showed it.
      attempts: Their names, side by side in each attempt.
      verdicts: Number of an attempt ↦ the last act that compared its outputs.
      labels: Output and annotator ↦ thumbs up, or down.
      judgements: Output, criterion and annotator ↦ the event that judged it.
      edits: The user's last edit of each.
      expert: The last edit of each by each expert.
      notes: Texts, in order.
      accepted: Name of the output that was accepted.
      ended: "abandoned" or "skipped" where it was left so.
    """

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempts: list[list[str]] = field(default_factory=list)
    verdicts: dict[int, dict[str, Any]] = field(default_factory=dict)
    labels: dict[tuple[str, Any], bool] = field(default_factory=dict)
    judgements: dict[tuple[str, str, Any], dict[str, Any]] = field(default_factory=dict)
    edits: dict[str, Any] = field(default_factory=dict)
    expert: dict[tuple[str, Any], Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    accepted: str | None = None
    ended: str | None = None

    def attempt_of(self, output: str) -> int:
        """Returns the number of the attempt that an output belongs to."""
        return next(i for i, attempt in enumerate(self.attempts) if output in attempt)

    def content(self, output: str) -> Any:
        """Returns what an output says."""
        return self.outputs[output]["content"]


def records_of(turn: Sequence[Event], config: FeedbackConfig | None = None) -> list[Derived]:
    """Returns the feedback of one turn, as records of the sources.

    Raises:
      NoPair: If it says nothing, or its events cannot have happened so; the code says which.
    """
    first = turn[0]
    if first.value["event"] != "prompt":
        raise NoPair("contradictory: no prompt")
    state = state_of([event.value for event in turn])
    # Accepting one of several side by side turns the others down, unless the setting says that the
    # application only keeps it.
    if (config or FeedbackConfig()).accepted == "selects" and state.accepted is not None:
        attempt = state.attempt_of(state.accepted)
        state.verdicts[attempt] = {"event": "selected", "output": state.accepted}
    known = _known(turn, state)
    found = [*_of_experts(state), *_of_labels(state), *_of_judgements(state)]
    # Whoever leaves may have been content with any answer or with none.
    if state.ended is None:
        found += _of_user(state)
    if not found:
        raise NoPair(_reason(state))
    return [Derived(source, {**known, **record}, first.where) for source, record in found]


def state_of(turn: Sequence[dict[str, Any]]) -> Turn:
    """Follows the events of one turn, its prompt first.

    Raises:
      NoPair: If they cannot have happened so.
    """
    state = Turn()
    for event in _without_undone(turn[1:]):
        name = event["event"]
        if name in _SHOWN:
            _show(state, event)
        elif name == "abandoned" or name == "skipped":
            state.ended = name
        elif name == "note":
            state.notes.append(event["text"])
        else:
            _check_outputs(state, event)
            _act(state, event)
    return state


def _without_undone(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the events that were not taken back, without those that took back.

    Raises:
      NoPair: If there is nothing to undo, or two different events have one id.
    """
    left: list[dict[str, Any]] = []
    ids: dict[str, dict[str, Any]] = {}
    for event in events:
        if (name := event.get("id")) is not None:
            # An event that is sent again may bear the time of its second sending.
            same = {key: value for key, value in event.items() if key != "time"}
            if name in ids:
                if ids[name] != same:
                    raise NoPair("contradictory: two events of one id")
                continue
            ids[name] = same
        if event["event"] != "undo":
            left.append(event)
            continue
        # Showing an answer is the application's doing, and nobody's to take back.
        acts = [
            i
            for i, act in enumerate(left)
            if act["event"] not in _SHOWN
            and (
                act.get("id") == event["undoes"]
                if event.get("undoes") is not None
                else act.get("annotator") == event.get("annotator")
            )
        ]
        if acts:
            del left[acts[-1]]
        # One that was undone before is undone still; one that never was is a fault of the log.
        elif event.get("undoes") not in ids:
            raise NoPair("contradictory: nothing to undo")
    return left


def _check_outputs(state: Turn, event: dict[str, Any]) -> None:
    named = event.get("outputs") or [event["output"]]
    if not set(named) <= state.outputs.keys():
        raise NoPair("contradictory: unknown output")
    if len({state.attempt_of(output) for output in named}) > 1:
        raise NoPair("contradictory: outputs of several attempts compared")


def _show(state: Turn, event: dict[str, Any]) -> None:
    output, again = event["output"], event["event"] == "regenerated"
    if output in state.outputs:
        raise NoPair("contradictory: an output was generated twice")
    if again and not state.attempts:
        raise NoPair("contradictory: regenerated before anything was generated")
    if again or not state.attempts:
        state.attempts.append([])
    state.attempts[-1].append(output)
    state.outputs[output] = event
    # Whoever asks for another answer is not done, whatever was clicked before.
    state.accepted = state.ended = None


def _act(state: Turn, event: dict[str, Any]) -> None:
    """Takes account of what somebody did with outputs."""
    name, who = event["event"], event.get("annotator")
    output = event.get("output") or event["outputs"][0]
    if name == "thumbs":
        state.labels.pop((output, who), None)
        if event.get("label") is not None:
            state.labels[output, who] = event["label"]
    elif name == "judged":
        state.judgements.pop((output, event["criterion"], who), None)
        if event.get("passed") is not None:
            state.judgements[output, event["criterion"], who] = event
    elif event.get("by") == "expert":
        # Experts review conversations after they ended, which opens none of them again.
        state.expert[output, who] = event["content"]
    else:
        state.ended = None
        if name == "edited":
            state.edits[output] = event["content"]
        elif name == "accepted":
            state.accepted = output
            # To keep another answer than the selected one is to take the selection back.
            if state.verdicts.get(state.attempt_of(output), event).get("output") != output:
                del state.verdicts[state.attempt_of(output)]
        elif name in _VERDICTS:
            # Replaced and not added: of an attempt only the last comparison is meant.
            state.verdicts[state.attempt_of(output)] = event
            if state.accepted in state.attempts[state.attempt_of(output)] and (
                event.get("output") != state.accepted
            ):
                state.accepted = None


def _known(turn: Sequence[Event], state: Turn) -> dict[str, Any]:
    """Returns what all records of a turn have in common."""
    first = turn[0].value
    known = {key: first[key] for key in PROMPT_KEYS if key in first}
    # The prompt's own keys stay in its record, which keeps them as metadata.
    known |= {key: value for key, value in first.items() if key not in turn[0].known}
    known |= {"conversation": first["conversation"], "time": turn[-1].time.isoformat()}
    if isinstance(turn[-1].value["time"], str):
        known["time"] = turn[-1].value["time"]
    # The last person who did something: later acts are the ones that decide.
    annotators = [e.value["annotator"] for e in turn if e.value.get("annotator") is not None]
    known |= {"annotator": annotators[-1]} if annotators else {}
    known |= {"notes": state.notes} if state.notes else {}
    also = {
        key: value
        for event in turn[1:]
        for key, value in event.value.items()
        if key not in event.known
    }
    return known | ({"also": also} if also else {})


def _reason(state: Turn) -> str:
    """Names why a turn makes no pair."""
    if state.ended is not None:
        return state.ended
    # Told from "unfinished": people who find answers equal have done their part.
    last = list(state.verdicts.values())[-1:]
    if state.accepted is None and last and last[0]["event"] == "tie":
        return "tie"
    return "unfinished" if state.accepted is None else "accepted-first"


def _of_experts(state: Turn) -> _Found:
    return [
        (
            "expert_edits",
            {"output": state.content(output), "edited": edited, "annotator": who}
            | _model(state, output),
        )
        for (output, who), edited in state.expert.items()
    ]


def _of_labels(state: Turn) -> _Found:
    labels = dict(state.labels)
    for verdict in state.verdicts.values():
        if verdict["event"] == "all_bad":
            for output in verdict["outputs"]:
                # A thumb was for this very answer, so it says more than a click for all of them.
                labels.setdefault((output, verdict.get("annotator")), False)
    return [
        (
            "thumbs",
            {"output": state.content(output), "label": label, "annotator": who}
            | _model(state, output),
        )
        for (output, who), label in labels.items()
    ]


def _of_judgements(state: Turn) -> _Found:
    return [
        (
            "criteria",
            {
                "completion": state.content(output),
                "criterion": criterion,
                "passed": event["passed"],
                "explanation": event.get("explanation") or "",
                "annotator": who,
            }
            | _model(state, output),
        )
        for (output, criterion, who), event in state.judgements.items()
    ]


def _model(state: Turn, output: str) -> dict[str, Any]:
    model = state.outputs[output].get("model")
    return {} if model is None else {"model": model}


def _of_user(state: Turn) -> _Found:
    found: _Found = []
    for number, attempt in enumerate(state.attempts):
        verdict = state.verdicts.get(number)
        # One answer alone was not preferred to anything.
        if verdict and verdict["event"] == "selected" and len(attempt) > 1:
            record = {"selected": attempt.index(verdict["output"]), **_side_by_side(state, attempt)}
            found.append(("user_choice", record))
    if state.accepted is None:
        return found
    # Answers beside the accepted one were not tried again: `user_choice` has them.
    beside = set(state.attempts[state.attempt_of(state.accepted)]) - {state.accepted}
    tried = [output for output in state.outputs if output not in beside]
    if len(tried) > 1:
        compared = _side_by_side(state, tried)
        record = {"attempts": compared["outputs"], "accepted": tried.index(state.accepted)}
        if "models" in compared:
            record["models"] = compared["models"]
        found.append(("regenerations", record))
    if state.accepted in state.edits:
        draft, saved = state.content(state.accepted), state.edits[state.accepted]
        found.append(
            ("user_edits", {"draft": draft, "saved": saved, **_model(state, state.accepted)})
        )
    return found


def _side_by_side(state: Turn, outputs: Sequence[str]) -> dict[str, Any]:
    """Returns the contents of outputs, and their models and places where all have them."""
    record: dict[str, Any] = {"outputs": [state.content(output) for output in outputs]}
    for key, plural in (("model", "models"), ("place", "places")):
        given = [state.outputs[output].get(key) for output in outputs]
        # Half a list would put the wrong model beside an answer.
        if None not in given:
            record[plural] = given
    return record

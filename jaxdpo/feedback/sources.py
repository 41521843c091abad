"""Six sources of feedback: functions from a record to the preferences that it holds.

Each is a pure function of a record and of the settings. It raises `NoPair` where the record says
nothing about what is better, and `BadPair` where it is not as documented.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.reading.said import Said
from jaxdpo.feedback.preferences import (
    FeedbackConfig,
    NoPair,
    Preference,
    answer,
    answers,
    check_keys,
    index_in,
)
from jaxdpo.inspection.survey import almost_equal
from jaxdpo.inspection.texts import said

SourceName = Literal[
    "expert_edits", "criteria", "user_choice", "regenerations", "user_edits", "thumbs"
]


def expert_edits(record: dict[str, Any], config: FeedbackConfig) -> list[Preference]:
    """Prefers what an expert made of an answer, `edited`, to the model's own `output`.

        {"messages": [...], "output": "It opens at 8.", "edited": "It opens at 9."}

    An expert means every edit but one of white space.
    """
    check_keys(record, "expert_edits")
    output, edited = answer(record, "output"), answer(record, "edited")
    _check_edit(output, edited)
    return [Preference(edited, output)]


def user_edits(record: dict[str, Any], config: FeedbackConfig) -> list[Preference]:
    """Prefers what a user saved, `saved`, to the model's `draft`.

        {"messages": [...], "draft": "Dear Sir, ...", "saved": "Dear Ms Chen, ..."}

    An edit of white space, capitals and punctuation is trivial, and of one word in twenty or more.
    """
    check_keys(record, "user_edits")
    draft, saved = answer(record, "draft"), answer(record, "saved")
    _check_edit(draft, saved)
    # Users fix a comma in passing. Training on it would teach commas, with the weight of an answer.
    if almost_equal(_text(draft), _text(saved)):
        raise NoPair("trivial-edit")
    return [Preference(saved, draft)]


def user_choice(record: dict[str, Any], config: FeedbackConfig) -> list[Preference]:
    """Prefers the one of the `outputs` that was `selected` to each of the others.

        {"messages": [...], "outputs": ["9", "At 9.", "Nine."], "selected": 1, "shown": [0, 1]}

    `selected` and `shown` count from 0. What was not shown was not turned down; without
    `shown`, all were. `models` names the model of each output, and `places` where it stood on the
    page, from 0.
    """
    check_keys(record, "user_choice")
    outputs = answers(record, "outputs")
    if record.get("selected") is None:
        raise NoPair("none-selected")
    selected = index_in(record, "selected", outputs, "outputs")
    shown = _shown(record, outputs)
    if selected not in shown:
        raise BadPair(
            "selected-not-shown", f"selected is {selected}, which is not in shown; fix one of them"
        )
    # An answer that nobody saw lost to nothing.
    seen = shown if config.choice == "shown" else range(len(outputs))
    rest = [i for i in seen if i != selected]
    return _against(record, outputs, selected, rest)


def regenerations(record: dict[str, Any], config: FeedbackConfig) -> list[Preference]:
    """Prefers the one of the `attempts` that was `accepted` to the first other.

        {"messages": [...], "attempts": ["8", "At 8.", "At 9."], "accepted": 2}

    `accepted` counts from 0; null where none was. A user may go back: attempts after the accepted
    one were turned down like those before it.
    """
    check_keys(record, "regenerations")
    attempts = answers(record, "attempts")
    if record.get("accepted") is None:
        raise NoPair("none-accepted")
    accepted = index_in(record, "accepted", attempts, "attempts")
    if len(attempts) == 1:
        raise NoPair("accepted-first")
    rest = [i for i in range(len(attempts)) if i != accepted]
    # By default one pair a record: a user who tries ten times would count ten times as much.
    preferences = _against(record, attempts, accepted, rest)
    return preferences[:1] if config.regenerations == "first" else preferences


def criteria(record: dict[str, Any], config: FeedbackConfig) -> list[Preference]:
    """Prefers the answer of the highest value to that of the lowest; ties make no pair.

        {"messages": [...], "answers": [{"completion": "At 9.", "value": 1.0}, ...]}

    With `margin`, all answers whose values differ by that much make a pair. Of equals the first is
    taken.
    """
    check_keys(record, "criteria")
    valued = record["answers"]
    if len(valued) < 2:
        raise NoPair("one-answer")
    # `sorted` is stable: the first of equal answers stays first.
    ranked = sorted(valued, key=lambda item: -item["value"])
    highest, lowest = ranked[0], min(valued, key=lambda item: item["value"])
    if highest["value"] == lowest["value"]:
        raise NoPair("all-equal")
    pairs = [(highest, lowest)]
    if config.margin is not None:
        both = itertools.combinations(ranked, 2)
        pairs = [(a, b) for a, b in both if a["value"] - b["value"] >= config.margin]
    if not pairs:
        raise NoPair("within-margin")
    return [
        Preference(
            answer(high, "completion"),
            answer(low, "completion"),
            (high["value"], low["value"]),
            {"chosen": high.get("why", {}), "rejected": low.get("why", {})},
        )
        for high, low in pairs
    ]


def thumbs(record: dict[str, Any], config: FeedbackConfig) -> list[Preference]:
    """Labels the answer `output` as good or bad, by itself: no pair, but what KTO trains on.

        {"messages": [...], "output": "At 9.", "label": true}

    A label of null was taken back.
    """
    check_keys(record, "thumbs")
    output, label = answer(record, "output"), record.get("label")
    if label is None:
        raise NoPair("no-label")
    # 1 and 0 may be ratings of another scale.
    if not isinstance(label, bool):
        raise BadPair("label-type", f"label is {show(label)}; write true or false")
    return [Preference(output, (), label=label)]


SOURCES: dict[SourceName, Callable[[dict[str, Any], FeedbackConfig], list[Preference]]] = {
    "expert_edits": expert_edits,
    "criteria": criteria,
    "user_choice": user_choice,
    "regenerations": regenerations,
    "user_edits": user_edits,
    "thumbs": thumbs,
}


def _text(answer: Sequence[Said]) -> str:
    return said([part.message for part in answer])


def _check_edit(before: Sequence[Said], after: Sequence[Said]) -> None:
    old, new = _text(before), _text(after)
    if old == new:
        raise NoPair("unchanged")
    # An emptied answer says that the old one was bad, and nothing about what is better.
    if not new.strip():
        raise NoPair("emptied")
    if old.split() == new.split():
        raise NoPair("white-space-only")


def _against(
    record: dict[str, Any], outputs: Sequence[list[Said]], chosen: int, rest: Sequence[int]
) -> list[Preference]:
    """Prefers the chosen answer to each other that says something else, each text once."""
    if not rest:
        raise NoPair("one-answer")
    other: dict[str, int] = {}
    # A model that says the same thing twice was not turned down.
    for each in rest:
        if _text(outputs[each]) != _text(outputs[chosen]):
            other.setdefault(_text(outputs[each]), each)
    if not other:
        raise NoPair("all-equal")
    return [
        Preference(outputs[chosen], outputs[each], why=_compared(record, outputs, (chosen, each)))
        for each in other.values()
    ]


def _compared(
    record: dict[str, Any], outputs: Sequence[Any], both: tuple[int, int]
) -> dict[str, Any]:
    """Returns models and places of the two answers, chosen first, where the record has them."""
    found = {}
    for key in ("models", "places"):
        given = record.get(key)
        if given is None:
            continue
        if not isinstance(given, list) or len(given) != len(outputs):
            raise BadPair(key, f"{key} is {show(given)}; write one for each of the answers")
        found[key] = [given[i] for i in both]
    return found


def _shown(record: dict[str, Any], outputs: Sequence[Any]) -> Sequence[int]:
    shown = record.get("shown")
    if shown is None:
        return range(len(outputs))
    right = isinstance(shown, list) and all(type(i) is int and 0 <= i < len(outputs) for i in shown)
    if not right or len(set(shown)) < len(shown):
        raise BadPair(
            "index", f"shown is {show(shown)}; write places in outputs, 0 to {len(outputs) - 1}"
        )
    return shown

"""The event log: what turns say, what they don't, and that order and repeats make no difference."""

import json
import random

import pytest

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.errors import UserError
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.events import parse_event
from jaxdpo.feedback.preferences import FeedbackConfig

ASKED = [{"role": "user", "content": "When does it open?"}]
PROMPT = {"event": "prompt", "messages": ASKED}


def shown(output, content, event="generated"):
    return {"event": event, "output": output, "content": content}


def did(event, output, **more):
    return {"event": event, **({} if output is None else {"output": output}), **more}


def conversation(name, *events):
    """Events a second apart."""
    return [
        {"conversation": name, "time": f"2026-05-04T09:00:{i:02}Z", **event}
        for i, event in enumerate(events)
    ]


def read(tmp_path, events, **settings):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return collect("events", str(path), FeedbackConfig(**settings))


def told(collected):
    return [
        (
            pair.metadata["feedback"]["source"],
            pair.chosen[0]["content"],
            pair.rejected[0]["content"],
        )
        for pair in collected.pairs
    ]


A, B, C = shown("a", "At 7."), shown("b", "At 8."), shown("c", "At 9.")
AGAIN = shown("b", "At 8.", "regenerated")
THIRD = shown("c", "At 9.", "regenerated")
LEFT = {"event": "abandoned"}


@pytest.mark.parametrize(
    ("events", "pairs"),
    [
        (
            [PROMPT, A, B, C, did("selected", "b")],
            [("user_choice", "At 8.", "At 7."), ("user_choice", "At 8.", "At 9.")],
        ),
        ([PROMPT, A, B, did("accepted", "b")], [("user_choice", "At 8.", "At 7.")]),
        ([PROMPT, A, AGAIN, did("accepted", "b")], [("regenerations", "At 8.", "At 7.")]),
        ([PROMPT, A, AGAIN, THIRD, did("accepted", "c")], [("regenerations", "At 9.", "At 7.")]),
        (
            [PROMPT, A, did("edited", "a", content="Nine."), did("accepted", "a")],
            [("user_edits", "Nine.", "At 7.")],
        ),
        (
            [
                PROMPT, A, did("edited", "a", content="Ten."), did("edited", "a", content="Nine."),
                did("accepted", "a"),
            ],
            [("user_edits", "Nine.", "At 7.")],
        ),
        (
            [PROMPT, A, did("edited", "a", content="Nine.", by="expert", annotator="ann")],
            [("expert_edits", "Nine.", "At 7.")],
        ),
        # An expert looks at it afterwards.
        (
            [PROMPT, A, LEFT, did("edited", "a", content="Nine.", by="expert")],
            [("expert_edits", "Nine.", "At 7.")],
        ),
        # Two side by side, then one more, which is edited and kept.
        (
            [
                PROMPT, A, B, did("selected", "a"), THIRD, did("edited", "c", content="Nine."),
                did("accepted", "c"),
            ],
            [
                ("user_choice", "At 7.", "At 8."),
                ("regenerations", "At 9.", "At 7."),
                ("user_edits", "Nine.", "At 9."),
            ],
        ),
        # The output beside the accepted one was not regenerated.
        (
            [PROMPT, A, AGAIN, C, did("selected", "c"), did("accepted", "c")],
            [("user_choice", "At 9.", "At 8."), ("regenerations", "At 9.", "At 7.")],
        ),
    ],
)  # fmt: skip
def test_what_a_turn_says(tmp_path, events, pairs):
    assert told(read(tmp_path, conversation("c1", *events))) == pairs


UNDO = {"event": "undo"}
BAD = {"event": "all_bad", "outputs": ["a", "b"]}


@pytest.mark.parametrize(
    ("events", "pairs"),
    [
        (
            [PROMPT, A, B, did("selected", "a"), did("selected", "b")],
            [("user_choice", "At 8.", "At 7.")],
        ),
        (
            [PROMPT, A, B, did("selected", "a"), did("accepted", "b")],
            [("user_choice", "At 8.", "At 7.")],
        ),
        (
            [PROMPT, A, B, did("edited", "a", content="Nine."), did("accepted", "b")],
            [("user_choice", "At 8.", "At 7.")],
        ),
        (
            [PROMPT, A, did("accepted", "a"), AGAIN, did("accepted", "b")],
            [("regenerations", "At 8.", "At 7.")],
        ),
        (
            [PROMPT, A, AGAIN, did("accepted", "a"), did("accepted", "b")],
            [("regenerations", "At 8.", "At 7.")],
        ),
        ([PROMPT, A, B, LEFT, did("selected", "b")], [("user_choice", "At 8.", "At 7.")]),
        ([PROMPT, A, B, did("selected", "a"), UNDO, did("selected", "b")],
         [("user_choice", "At 8.", "At 7.")]),
        ([PROMPT, A, B, did("selected", "b"), did("selected", "a"), UNDO],
         [("user_choice", "At 8.", "At 7.")]),
        ([PROMPT, A, B, did("selected", "b", id="e1"), {"event": "note", "text": "Hm."},
          did("selected", "a", id="e2"), {**UNDO, "undoes": "e2"}],
         [("user_choice", "At 8.", "At 7.")]),
        # Undone once, though the application sent it twice.
        ([PROMPT, A, B, did("selected", "b"), did("selected", "a", id="e2"),
          {**UNDO, "id": "e3", "undoes": "e2"}, {**UNDO, "id": "e3", "undoes": "e2"}],
         [("user_choice", "At 8.", "At 7.")]),
        # Who accepts one of two that were called equal has chosen.
        ([PROMPT, A, B, {"event": "tie", "outputs": ["a", "b"]}, did("accepted", "b")],
         [("user_choice", "At 8.", "At 7.")]),
        ([PROMPT, A, B, BAD, THIRD, did("accepted", "c")],
         [("regenerations", "At 9.", "At 7.")]),
        ([PROMPT, A, B, BAD, did("selected", "b")], [("user_choice", "At 8.", "At 7.")]),
    ],
)  # fmt: skip
def test_a_changed_mind_keeps_the_turn(tmp_path, events, pairs):
    assert told(read(tmp_path, conversation("c1", *events))) == pairs


def test_accepting_may_say_nothing_of_what_stood_beside(tmp_path):
    events = conversation("c1", PROMPT, A, B, THIRD, did("accepted", "c"))
    assert told(read(tmp_path, events, accepted="keeps")) == [("regenerations", "At 9.", "At 7.")]
    beside = conversation("c1", PROMPT, A, B, did("accepted", "b"))
    assert told(read(tmp_path, beside)) == [("user_choice", "At 8.", "At 7.")]
    assert told(read(tmp_path, beside, accepted="keeps")) == []
    # A selection that was made stays, unless another answer was kept.
    chosen = conversation("c1", PROMPT, A, B, did("selected", "b"), did("accepted", "b"))
    assert told(read(tmp_path, chosen, accepted="keeps")) == [("user_choice", "At 8.", "At 7.")]


def labels(collected):
    return {pair.chosen[0]["content"]: pair.label for pair in collected.labelled}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([did("thumbs", "a", label=True), did("thumbs", "b", label=False)],
         {"At 7.": True, "At 8.": False}),
        ([did("thumbs", "a", label=True), did("thumbs", "a", label=None)], {}),
        ([did("thumbs", "a", label=True), did("thumbs", "a", label=False), LEFT],
         {"At 7.": False}),
        ([BAD], {"At 7.": False, "At 8.": False}),
        ([BAD, did("thumbs", "b", label=True)], {"At 7.": False, "At 8.": True}),
        ([BAD, did("selected", "b")], {}),
        ([BAD, UNDO], {}),
    ],
)  # fmt: skip
def test_thumbs_and_all_bad_label_answers(tmp_path, events, expected):
    collected = read(tmp_path, conversation("c1", PROMPT, A, B, *events))
    assert labels(collected) == expected
    assert all(pair.rejected == () for pair in collected.labelled)


def test_judgements_of_a_log_are_those_of_the_source_criteria(tmp_path):
    def by(who, output, passed):
        return did("judged", output, criterion="polite", passed=passed, annotator=who)

    events = conversation(
        "c1", PROMPT, A, B, by("ann", "a", False), by("ann", "a", True), by("ann", "b", False)
    )
    # Another person, in a conversation of their own, sees one answer differently.
    events += conversation("c2", PROMPT, A, B, by("bob", "a", True), by("bob", "b", True))
    collected = read(tmp_path, events)
    assert told(collected) == [("criteria", "At 7.", "At 8.")]
    assert collected.pairs[0].scores == (1.0, 0.5)
    assert [(each.what, each.judgements) for each in collected.agreements] == [
        ('"ann" and "bob"', 2)
    ]


def test_notes_places_models_and_unknown_keys_come_along(tmp_path):
    events = conversation(
        "c1",
        {**PROMPT, "session": "s9"},
        {**A, "model": "sft", "place": 1},
        {**B, "model": "dpo", "place": 0},
        {"event": "note", "text": "Check the hours.", "device": "phone"},
        did("selected", "b"),
    )
    [pair] = read(tmp_path, events).pairs
    assert pair.metadata["session"] == "s9"
    known = pair.metadata["feedback"]
    assert (known["models"], known["places"]) == (["dpo", "sft"], [0, 1])
    assert (known["notes"], known["also"]) == (["Check the hours."], {"device": "phone"})


def test_prompts_may_be_texts_and_times_seconds(tmp_path):
    events = [
        {"event": "prompt", "prompt": "When does it open?", "time": 1777885200},
        {**A, "time": 1777885201},
        {**B, "time": 1777885202.5},
        {**did("selected", "b"), "time": 1777885203},
    ]
    events = [{"conversation": "c", **event} for event in events]
    [pair] = read(tmp_path, events).pairs
    assert list(pair.prompt) == ASKED
    assert pair.metadata["feedback"]["time"] == "2026-05-04T09:00:03+00:00"


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([PROMPT, A, B, did("selected", "a"), LEFT], "abandoned"),
        ([PROMPT, A, AGAIN, LEFT], "abandoned"),
        ([PROMPT, A], "unfinished"),
        ([PROMPT], "unfinished"),
        ([PROMPT, A, did("edited", "a", content="Nine.")], "unfinished"),
        ([PROMPT, A, did("accepted", "a")], "accepted-first"),
        ([PROMPT, A, did("accepted", "a"), did("accepted", "a")], "accepted-first"),
        ([A, did("accepted", "a")], "contradictory: no prompt"),
        ([PROMPT, AGAIN], "contradictory: regenerated before anything was generated"),
        ([PROMPT, A, A], "contradictory: an output was generated twice"),
        ([PROMPT, A, did("selected", "b")], "contradictory: unknown output"),
        ([PROMPT, A, did("accepted", "a"), AGAIN], "unfinished"),
        ([PROMPT, A, LEFT, did("accepted", "a")], "accepted-first"),
        ([PROMPT, A, B, did("tie", None, outputs=["a", "b"])], "tie"),
        ([PROMPT, A, B, did("selected", "a"), did("tie", None, outputs=["a", "b"])], "tie"),
        ([PROMPT, A, B, {"event": "skipped"}], "skipped"),
        ([PROMPT, A, B, did("selected", "a"), {"event": "undo"}], "unfinished"),
        ([PROMPT, A, B, {"event": "undo"}], "contradictory: nothing to undo"),
        (
            [PROMPT, A, AGAIN, did("tie", None, outputs=["a", "b"])],
            "contradictory: outputs of several attempts compared",
        ),
        (
            [PROMPT, A, B, did("selected", "a", id="e"), did("selected", "b", id="e")],
            "contradictory: two events of one id",
        ),
    ],
)
def test_what_says_nothing_is_counted(tmp_path, events, code):
    collected = read(tmp_path, conversation("c1", *events))
    assert (collected.pairs, list(collected.no_pair)) == ((), [code])
    assert f"no pair, {code}: 1 (first: " in collected.summary()


def test_lines_may_be_mixed_and_repeated(tmp_path):
    one = conversation("one", PROMPT, A, AGAIN, did("accepted", "b"), PROMPT, A, B)
    one += conversation("late", PROMPT, A, C, did("selected", "a"), did("accepted", "a"))
    other = conversation("two", PROMPT, A, did("edited", "a", content="Nine."))
    other += [{**did("accepted", "a"), "conversation": "two", "time": "2026-05-04T12:00:00+02:00"}]
    expected = sorted(told(read(tmp_path, one + other)))
    assert len(expected) == 3
    for seed in range(5):
        events = [*one, *other, *one[:3]]
        random.Random(seed).shuffle(events)
        collected = read(tmp_path, events)
        assert sorted(told(collected)) == expected
        assert {code: len(where) for code, where in collected.no_pair.items()} == {"unfinished": 1}


def test_a_pair_says_where_it_comes_from(tmp_path):
    events = conversation("c7", {**PROMPT, "metadata": {"app": 2}}, A, AGAIN, did("accepted", "b"))
    [pair] = read(tmp_path, [{**event, "annotator": "u1"} for event in events]).pairs
    assert pair.metadata == {
        "app": 2,
        "feedback": {
            "source": "regenerations", "from": f"{tmp_path}/log.jsonl:1", "annotator": "u1",
            "time": "2026-05-04T09:00:03Z", "conversation": "c7",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "regenrated"}, "did you mean 'regenerated'"),
        ({"time": "2026-05-04T09:00:00"}, "with its offset"),
        ({"time": 3}, "time is 3; write it as"),
        ({"outptu": "a"}, "unknown key \"outptu\"; did you mean 'output'"),
        ({"output": 3}, "output is 3; write a string"),
        ({"output": None}, "output is null"),
        ({"event": "edited", "content": "x", "by": "me"}, "write 'user' or 'expert'"),
    ],
)
def test_an_event_that_is_not_as_documented_is_refused(event, message):
    whole = {
        "event": "accepted", "conversation": "c", "time": "2026-05-04T09:00:00Z", "output": "a",
        **event,
    }  # fmt: skip
    with pytest.raises(BadPair) as refused:
        parse_event(whole, "log.jsonl:1")
    assert message in str(refused.value)


def test_bad_lines_stop_or_are_counted(tmp_path):
    events = conversation("c1", PROMPT, A, AGAIN, did("accepted", "b"))
    events.insert(1, {"event": "clicked"})
    with pytest.raises(UserError, match=r"log.jsonl:2: .*\n1 bad lines; fix them, or set on_err"):
        read(tmp_path, events, on_error="stop")
    collected = read(tmp_path, events, on_error="skip")
    assert len(collected.pairs) == len(collected.bad_lines) == 1


def test_a_line_that_is_not_understood_never_costs_the_log(tmp_path):
    events = conversation("c1", PROMPT, A, AGAIN, did("accepted", "b"))
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(event) for event in events]
    lines[1:1] = ['{"event": "clicked", "conversation": "c1", "time": 1777885200}', "{cut off"]
    path.write_text("\n".join(lines))
    collected = collect("events", str(path))
    assert told(collected) == [("regenerations", "At 8.", "At 7.")]
    assert [(bad.line, bad.code) for bad in collected.bad_lines] == [(2, "event"), (3, "bad-json")]
    assert f'{path}:2: event is "clicked"; write one of' in collected.summary()

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
    return {"event": event, "output": output, **more}


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
        (
            [PROMPT, A, B, did("selected", "a"), did("selected", "b")],
            "contradictory: two were selected",
        ),
        (
            [PROMPT, A, B, did("selected", "a"), did("accepted", "b")],
            "contradictory: another was accepted than selected",
        ),
        (
            [PROMPT, A, B, did("edited", "a", content="Nine."), did("accepted", "b")],
            "contradictory: another was accepted than edited",
        ),
        ([PROMPT, A, did("accepted", "a"), AGAIN], "contradictory: goes on after its end"),
        ([PROMPT, A, LEFT, did("accepted", "a")], "contradictory: goes on after its end"),
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
        read(tmp_path, events)
    collected = read(tmp_path, events, on_error="skip")
    assert len(collected.pairs) == len(collected.bad_lines) == 1

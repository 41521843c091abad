"""Each source of feedback: golden records, and every edge that makes no pair."""

import pytest

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.feedback.preferences import FeedbackConfig, NoPair, make_pair
from jaxdpo.feedback.sources import SOURCES

ASKED = [{"role": "user", "content": "When does it open?"}]
LONG = " ".join(f"word{i}" for i in range(30))


def preferred(source, record, **settings):
    """(chosen, rejected) texts of each pair that a record makes."""
    record = {"messages": ASKED, **record}
    config = FeedbackConfig(**settings)
    pairs = [
        make_pair(record, preference, source, "in.jsonl:1", config.test_fraction)
        for preference in SOURCES[source](record, config)
    ]
    assert all(list(pair.prompt) == ASKED for pair in pairs)
    return [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pairs]


def valued(*values):
    return {"answers": [{"completion": f"a{i}", "value": v} for i, v in enumerate(values)]}


GOLDEN = [
    ("expert_edits", {"output": "At 8.", "edited": "At 9."}, {}, [("At 9.", "At 8.")]),
    ("expert_edits", {"output": "at 9.", "edited": "At 9."}, {}, [("At 9.", "at 9.")]),
    ("user_edits", {"draft": "At 8.", "saved": "At 9."}, {}, [("At 9.", "At 8.")]),
    (
        "user_edits",
        {"draft": LONG, "saved": LONG + " and more"},
        {},
        [(LONG + " and more", LONG)],
    ),
    (
        "user_choice",
        {"outputs": ["a", "b", "c"], "selected": 1},
        {},
        [("b", "a"), ("b", "c")],
    ),
    (
        "user_choice",
        {"outputs": ["a", "b", "c"], "selected": 1, "shown": [1, 2]},
        {},
        [("b", "c")],
    ),
    (
        "user_choice",
        {"outputs": ["a", "b", "c"], "selected": 1, "shown": [1, 2]},
        {"choice": "every"},
        [("b", "a"), ("b", "c")],
    ),
    # What repeats the selected output, or another, says nothing new.
    (
        "user_choice",
        {"outputs": ["a", "b", "a", "b", "c"], "selected": 0},
        {},
        [("a", "b"), ("a", "c")],
    ),
    (
        "regenerations",
        {"attempts": ["a", "b", "c"], "accepted": 2},
        {},
        [("c", "a")],
    ),
    (
        "regenerations",
        {"attempts": ["a", "b", "c"], "accepted": 2},
        {"regenerations": "every"},
        [("c", "a"), ("c", "b")],
    ),
    # The user went back to the first.
    ("regenerations", {"attempts": ["a", "b"], "accepted": 0}, {}, [("a", "b")]),
    ("criteria", valued(0.5, 1.0, 0.0), {}, [("a1", "a2")]),
    ("criteria", valued(1.0, 1.0, 0.0, 0.0), {}, [("a0", "a2")]),
    (
        "criteria",
        valued(0.5, 1.0, 0.0, 0.9),
        {"margin": 0.5},
        [("a1", "a0"), ("a1", "a2"), ("a3", "a2"), ("a0", "a2")],
    ),
]


@pytest.mark.parametrize(("source", "record", "settings", "pairs"), GOLDEN)
def test_golden(source, record, settings, pairs):
    assert preferred(source, record, **settings) == pairs


@pytest.mark.parametrize(
    ("source", "record", "settings", "code"),
    [
        ("expert_edits", {"output": "At 9.", "edited": "At 9."}, {}, "unchanged"),
        ("expert_edits", {"output": "At  9.\n", "edited": "At 9."}, {}, "white-space-only"),
        ("expert_edits", {"output": "At 9.", "edited": " "}, {}, "emptied"),
        ("user_edits", {"draft": "At  9.", "saved": "At 9.\n"}, {}, "white-space-only"),
        ("user_edits", {"draft": "at 9", "saved": "At 9."}, {}, "trivial-edit"),
        ("user_edits", {"draft": LONG, "saved": LONG + "s"}, {}, "trivial-edit"),
        ("user_choice", {"outputs": ["a"], "selected": 0}, {}, "one-answer"),
        ("user_choice", {"outputs": ["a", "a"], "selected": 0}, {}, "all-equal"),
        ("user_choice", {"outputs": ["a", "b"], "selected": None}, {}, "none-selected"),
        ("user_choice", {"outputs": ["a", "b"], "selected": 0, "shown": [0]}, {}, "one-answer"),
        ("regenerations", {"attempts": ["a"], "accepted": 0}, {}, "accepted-first"),
        ("regenerations", {"attempts": ["a", "b"], "accepted": None}, {}, "none-accepted"),
        ("regenerations", {"attempts": ["a", "a"], "accepted": 1}, {}, "all-equal"),
        ("criteria", valued(), {}, "one-answer"),
        ("criteria", valued(1.0), {}, "one-answer"),
        ("criteria", valued(1.0, 1.0, 1.0), {}, "all-equal"),
        ("criteria", valued(1.0, 0.8), {"margin": 0.5}, "within-margin"),
    ],
)
def test_what_says_nothing_makes_no_pair(source, record, settings, code):
    with pytest.raises(NoPair) as none:
        preferred(source, record, **settings)
    assert none.value.code == code


@pytest.mark.parametrize(
    ("source", "record", "message"),
    [
        ("expert_edits", {"output": "a"}, r"edited is missing"),
        ("expert_edits", {"output": "a", "editd": "b"}, r"unknown key \"editd\"; did you mean"),
        ("expert_edits", {"output": 3, "edited": "b"}, r"output is a number; write a string"),
        ("expert_edits", {"output": " ", "edited": "b"}, r"output.content is only white space"),
        ("user_choice", {"outputs": "a", "selected": 0}, r"outputs is a string; write a list"),
        ("user_choice", {"outputs": ["a", "b"], "selected": 2}, r"selected is 2; .* 0 to 1"),
        ("user_choice", {"outputs": ["a", "b"], "selected": True}, r"selected is true"),
        ("user_choice", {"outputs": ["a", "b"], "selected": 0, "shown": [2]}, r"shown is \[2\]"),
        ("user_choice", {"outputs": ["a", "b"], "selected": 0, "shown": [1]}, "not in shown"),
        ("regenerations", {"attempts": [], "accepted": 0}, r"attempts is an empty list"),
        (
            "expert_edits",
            {"messages": [*ASKED, {"role": "assistant", "content": "a"}], "output": "a",
             "edited": "b"},
            r"messages ends with the assistant's",
        ),
        ("expert_edits", {"messages": "hi", "output": "a", "edited": "b"}, r"messages is a string"),
        ("expert_edits", {"metadata": 3, "output": "a", "edited": "b"}, r"metadata is a number"),
    ],
)  # fmt: skip
def test_a_record_that_is_not_as_documented_is_refused(source, record, message):
    with pytest.raises(BadPair, match=message):
        preferred(source, record)


def test_provenance_and_the_users_own_fields_come_along():
    record = {
        "messages": ASKED, "output": "a", "edited": "b", "split": "TEST", "annotator": "ann",
        "time": "2026-05-04", "metadata": {"mine": 7},
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }  # fmt: skip
    [preference] = SOURCES["expert_edits"](record, FeedbackConfig())
    pair = make_pair(record, preference, "expert_edits", "in.jsonl:3", 0.2)
    assert (pair.split, pair.tools) == ("TEST", tuple(record["tools"]))
    assert pair.metadata == {
        "mine": 7,
        "feedback": {
            "source": "expert_edits", "from": "in.jsonl:3", "annotator": "ann",
            "time": "2026-05-04",
        },
    }  # fmt: skip


def test_answers_that_call_tools():
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "hours"}}}
    output = {"role": "assistant", "content": "At 9?"}
    edited = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": "At 9."},
    ]
    record = {"messages": ASKED, "output": output, "edited": edited}
    [preference] = SOURCES["expert_edits"](record, FeedbackConfig())
    pair = make_pair(record, preference, "expert_edits", "in.jsonl:1", 0.2)
    assert (list(pair.chosen), list(pair.rejected)) == (edited, [output])

"""A property: whatever the columns are called, a record is read exactly, or refused by name.

Records of known roles are written under random names, synonyms and nonsense. The oracle knows
nothing of the reader: it knows what stands in the record. Prompt, system and answers that are
trained must be exactly those; or the record is refused. Never is something silently left out.
"""

import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError

SYSTEM = ["system", "system_prompt", "System", "sys_prompt", "system_message", "systemPrompt"]
PROMPT = ["prompt", "question", "query", "instruction", "input", "problem", "user_prompt",
          "Question", "context", "history", "request", "user_message"]  # fmt: skip
BEFORE = ["history", "chat_history", "conversation_history", "previous_turns", "dialog"]
CHOSEN = ["chosen", "chosen_response", "accepted", "preferred_response", "pos"]
REJECTED = ["rejected", "rejected_response", "dispreferred_response", "neg", "rejected_text"]
FACTS = ["prompt_id", "source", "category", "annotator", "critique", "model_a", "lang", "rationale"]
NONSENSE = ["xq", "col_7", "f1", "zzyx", "kolumne", "a", "b", "persona", "passage", "background",
            "setup", "preamble", "evidence", "frage", "extra_text"]  # fmt: skip

WORDS = st.sampled_from(
    [
        "river",
        "Danube",
        "is",
        "the",
        "Name",
        "Europe",
        "long",
        "terse",
        "Be",
        "why",
        "2",
        "é",
        "東京",
    ]
)


def sentence(mark):
    """Text of at least two words, so that it is no mere mark; distinct by its number."""
    return st.tuples(st.integers(1, 10**9), st.lists(WORDS, min_size=2, max_size=7)).map(
        lambda drawn: f"{mark} {drawn[0]} {' '.join(drawn[1])}."
    )


def name(*families):
    known = [each for family in families for each in family]
    return st.one_of(st.sampled_from(known), st.sampled_from(NONSENSE))


def said(role, text):
    return {"role": role, "content": text}


def spell_text(text, role):
    """The ways that one text of one role is written."""
    message = [said(role, text)]
    return st.sampled_from(
        [text, message, json.dumps(message), {"role": [role], "content": [text]}, str(message),
         [{"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}]]
    )  # fmt: skip


@st.composite
def records(draw):
    """A record, and what of it must be trained: system, turns before, prompt, answers."""
    good, bad = draw(sentence("Good")), draw(sentence("Bad"))
    record, means = {}, {"chosen": good, "rejected": bad, "prompt": []}

    def put(column, value):
        # Two columns of one name cannot be; the first stays, and what it says with it.
        if column in record:
            return False
        record[column] = value
        return True

    for family, text in ((CHOSEN, good), (REJECTED, bad)):
        put(draw(st.sampled_from(family)), draw(spell_text(text, "assistant")))
    if draw(st.booleans()):
        text = draw(sentence("System"))
        if put(draw(name(SYSTEM)), text):
            means["prompt"].append(said("system", text))
    if draw(st.integers(0, 3)) == 0:
        before = [draw(sentence("Before")), draw(sentence("Told"))]
        turns = [said("user", before[0]), said("assistant", before[1])]
        if put(draw(name(BEFORE)), draw(st.sampled_from([[before], turns, json.dumps(turns)]))):
            means["prompt"] += turns
    if draw(st.integers(0, 5)):
        text = draw(sentence("Ask"))
        if put(draw(name(PROMPT)), draw(spell_text(text, "user"))):
            means["prompt"].append(said("user", text))
    if draw(st.booleans()):
        put(
            draw(st.sampled_from(FACTS)), draw(st.sampled_from(["x1", "A fact. It is so.", 3, 2.5]))
        )
    order = draw(st.permutations(list(record)))
    return {key: record[key] for key in order}, means


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(records())
def test_a_record_is_read_exactly_or_refused_by_name(tmp_path_factory, drawn):
    record, means = drawn
    file = tmp_path_factory.getbasetemp() / "named.jsonl"
    file.write_text(json.dumps(record) + "\n")
    try:
        [pair] = read_pairs(str(file), DataConfig(path=str(file), test_fraction=0.0)).pairs
    except UserError as error:
        event("refused")
        assert str(error).startswith(f"{file}")
        return
    event("read")
    assert list(pair.prompt) == means["prompt"], (record, pair)
    assert pair.chosen == (said("assistant", means["chosen"]),), record
    assert pair.rejected == (said("assistant", means["rejected"]),), record


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(records())
def test_no_record_of_well_known_names_is_refused(tmp_path_factory, drawn):
    """The other half of the property: refusing everything would be no reading."""
    record, means = drawn
    if any(column in NONSENSE or column in BEFORE for column in record) or not means["prompt"]:
        return
    if means["prompt"][-1]["role"] != "user":
        return
    file = tmp_path_factory.getbasetemp() / "known.jsonl"
    file.write_text(json.dumps(record) + "\n")
    [pair] = read_pairs(str(file), DataConfig(path=str(file), test_fraction=0.0)).pairs
    assert list(pair.prompt) == means["prompt"]
    assert pair.chosen == (said("assistant", means["chosen"]),)

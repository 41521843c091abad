"""Labelled answers: how they are read, and which answer each is compared with."""

import json

import numpy as np
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.kto_pairs import LabelledPairs
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError


def say(role, content):
    return {"role": role, "content": content}


def native(question, answer, label):
    messages = [say("user", question), say("assistant", answer)]
    return {"messages": messages, "label": label, "split": "TRAIN"}


def write(tmp_path, *records):
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_both_forms_say_the_same(tmp_path):
    path = write(
        tmp_path,
        native("Capital of Tasmania?", "Hobart", True),
        {"prompt": "Of Fiji?", "completion": "Suva", "label": False, "user": 3, "split": "TRAIN"},
        {
            "prompt": [say("user", "Of Peru?")],
            "completion": [say("assistant", "Lima")],
            "label": True,
            "split": "TRAIN",
        },
    )
    read = read_pairs(path, DataConfig(path=path))
    found = [(p.prompt[0]["content"], p.chosen[0]["content"], p.label) for p in read.pairs]
    assert found == [
        ("Capital of Tasmania?", "Hobart", True), ("Of Fiji?", "Suva", False),
        ("Of Peru?", "Lima", True),
    ]  # fmt: skip
    assert all(pair.rejected == () for pair in read.pairs)
    assert read.pairs[1].metadata == {"user": 3}
    assert "labelled answers: false 1, true 2" in read.report.summary()
    assert "labelled 1" in read.report.summary()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (native("Q?", "A", 2), r"thumbs.jsonl:1: label is 2; write true or false \[label-type\]"),
        (native("Q?", "A", "true"), r'label is "true"; write true or false'),
        (native("Q?", " ", True), r"messages\[1\].content is only white space"),
        (
            {"prompt": "Q?", "label": True, "completion": None},
            r"completion is null",
        ),
        (
            native("Q?", "A", True) | {"prompt": "Q?"},
            r"messages and prompt or completion; keep one",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, record, message):
    path = write(tmp_path, record)
    with pytest.raises(UserError, match=message):
        read_pairs(path, DataConfig(path=path, format="labelled"))


def load(tmp_path, make_tokenizer, *records, max_length=1024):
    path = write(tmp_path, *records)
    config = DataConfig(path=path, cache_dir=str(tmp_path / "cache"), max_length=max_length)
    return load_pairs(config, Chat(make_tokenizer())).splits["TRAIN"]


def test_each_answer_stands_beside_the_next_prompts_whatever_the_order(make_tokenizer, tmp_path):
    records = [native(f"Question {n % 7}", f"Answer {n}", n % 3 > 0) for n in range(20)]
    answers = {}
    for order in (records, records[::-1]):
        pairs = load(tmp_path, make_tokenizer, *order)
        examples = LabelledPairs(pairs, 1024)
        assert len(examples) == 20
        used = []
        for index, (example, pair) in enumerate(zip(examples, pairs, strict=True)):
            label = order[index]["label"]
            assert examples.labels[index] == label
            np.testing.assert_array_equal(example.prompt_ids, pair.prompt_ids)
            np.testing.assert_array_equal(example.chosen_ids, pair.chosen_ids)
            other = int(examples._other[index])
            assert order[other]["messages"][0] != order[index]["messages"][0]
            np.testing.assert_array_equal(example.rejected_ids, pairs[other].chosen_ids)
            own, others = (order[i]["messages"][1]["content"] for i in (index, other))
            assert answers.setdefault(own, others) == others
            used.append(other)
            lengths = [len(ids) for ids in example[:3]]
            assert lengths == examples.lengths[index].tolist()
        # Nearly all answers are somebody's: only runs of one prompt share.
        assert len(set(used)) >= 12


def test_labels_and_pairing_are_part_of_the_fingerprint(make_tokenizer, tmp_path):
    records = [native(f"Question {n}", f"Answer {n}", True) for n in range(6)]
    seen = set()
    for changed in (records, [*records[:5], native("Question 5", "Answer 5", False)], records[:5]):
        seen.add(LabelledPairs(load(tmp_path, make_tokenizer, *changed), 1024).fingerprint)
    assert len(seen) == 3


def test_a_pair_stands_for_two_answers(make_tokenizer, tmp_path):
    records = [
        {"prompt": f"Question {n}", "chosen": f"yes {n}", "rejected": f"no {n}", "split": "TRAIN"}
        for n in range(4)
    ]
    pairs = load(tmp_path, make_tokenizer, *records)
    examples = LabelledPairs(pairs, 1024)
    assert examples.labels.tolist() == [1.0] * 4 + [0.0] * 4
    for n in range(4):
        np.testing.assert_array_equal(examples[n].chosen_ids, pairs[n].chosen_ids)
        np.testing.assert_array_equal(examples[4 + n].chosen_ids, pairs[n].rejected_ids)
        assert examples.source(4 + n) == pairs.source(n)


def test_a_mismatched_answer_is_cut_to_fit_and_that_is_said(make_tokenizer, tmp_path):
    records = [native("word " * 30, "yes", True), native("Short?", "no " * 40, False)]
    pairs = load(tmp_path, make_tokenizer, *records)
    longest = int(pairs.lengths.sum(1).max())
    examples = LabelledPairs(pairs, longest)
    assert (examples.lengths[:, 0] + examples.lengths[:, 1:].max(1)).max() <= longest
    assert examples.cut >= 1 and "mismatched answers cut to fit" in examples.summary()
    np.testing.assert_array_equal(examples[1].chosen_ids, pairs[1].chosen_ids)


def test_one_prompt_alone_is_refused(make_tokenizer, tmp_path):
    pairs = load(tmp_path, make_tokenizer, *(native("Q?", f"A{n}", True) for n in range(3)))
    with pytest.raises(UserError, match="all 3 answers of a split are to one prompt"):
        LabelledPairs(pairs, 1024)

"""Files of feedback → files of pairs that a run reads; and what annotators disagree on."""

import json
import math
import sys

import pytest
from scipy.stats import binomtest

from jaxdpo.cli.command import run_command
from jaxdpo.collect import main
from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError
from jaxdpo.evaluation.human_agreement import read_human_judgements
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.human_judgements import alignment_lines
from jaxdpo.feedback.preferences import FeedbackConfig


def asked(text="When?"):
    return [{"role": "user", "content": text}]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def edit(output, edited, annotator=None, text="When?"):
    return {"messages": asked(text), "output": output, "edited": edited, "annotator": annotator}


def judged(completion, passed=None, criterion="short", text="When?", **more):
    return {
        "messages": asked(text), "completion": completion, "criterion": criterion,
        "passed": passed, **more,
    }  # fmt: skip


def test_the_command_writes_what_a_run_reads(tmp_path, capsys):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    several = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": "At 9."},
    ]
    plain = [edit("a", "b", text=f"q{i}") for i in range(12)] + [edit("a", "a ")]
    for records, form in ((plain, "messages"), ([*plain, edit("a", several)], "trl")):
        source = write(tmp_path / "in.jsonl", records)
        target = tmp_path / f"{form}.jsonl"
        following = main(["expert_edits", source, "-o", str(target), "test_fraction=0.3"])
        assert following == f"jaxdpo inspect {target}"
        shown = capsys.readouterr().out
        assert "no pair, white-space-only: 1 (first: " in shown and f"{source}:13" in shown
        read = read_pairs(str(target), DataConfig(path=str(target), test_fraction=0))
        assert read.report.formats == {form: 1}
        expected = collect("expert_edits", source, FeedbackConfig(test_fraction=0.3)).pairs
        assert {pair.split for pair in expected} == {"TRAIN", "TEST"}
        assert [{**vars(p), "source": ""} for p in read.pairs] == [
            {**vars(p), "source": ""} for p in expected
        ]


def test_answers_are_worth_the_mean_over_criteria(tmp_path):
    records = [
        judged("a", True), judged("a", False, "polite"),
        judged("b", True), judged("b", None, "polite", score=0.9, explanation="very"),
        judged("c", False), judged("c", False, "polite"),
        # Never judged by one of the criteria; another could not say.
        judged("d", False),
        judged("e", False), judged("e", None, "polite", explanation="cannot say"),
        judged("x", True, text="Other?"),
    ]  # fmt: skip
    collected = collect("criteria", write(tmp_path / "in.jsonl", records))
    [pair] = collected.pairs
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("b", "c")
    assert pair.scores == (0.95, 0)
    assert pair.metadata["feedback"]["chosen"]["judgements"] == [
        {"criterion": "short", "passed": True, "explanation": ""},
        {"criterion": "polite", "score": 0.9, "explanation": "very"},
    ]
    assert collected.unjudged == 2
    assert list(collected.no_pair) == ["one-answer"]


def test_prompts_with_other_metadata_are_other_prompts(tmp_path):
    records = [
        judged("a b", True, metadata={"limit": 2}), judged("a b c", False, metadata={"limit": 2}),
        judged("a b", False, metadata={"limit": 1}), judged("a", True, metadata={"limit": 1}),
    ]  # fmt: skip
    collected = collect("criteria", write(tmp_path / "in.jsonl", records))
    assert [pair.chosen[0]["content"] for pair in collected.pairs] == ["a b", "a"]


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (judged("a", "yes"), "judgement"),
        (judged("a", 1), "judgement"),
        ({"messages": asked(), "passed": True}, "missing-key"),
        (judged("a", True, pased=True), "unknown-key"),
        (judged("a", True, criterion=3), "criterion-type"),
        (judged(" ", True), "empty-completion"),
        (judged("a\0", True), "nul"),
    ],
)
def test_judgements_that_are_not_as_documented(tmp_path, record, code):
    path = write(tmp_path / "in.jsonl", [record])
    [bad] = collect("criteria", path, FeedbackConfig(on_error="skip")).bad_lines
    assert bad.code == code


def test_two_annotators_in_conflict(tmp_path):
    records = [
        edit("a", "b", "ann", "one"), edit("b", "a", "bob", "one"),
        edit("a", "b", "ann", "two"), edit("a", "b", "bob", "two"),
    ]  # fmt: skip
    path = write(tmp_path / "in.jsonl", records)
    collected = collect("expert_edits", path)
    assert [pair.prompt[0]["content"] for pair in collected.pairs] == ["two", "two"]
    assert (collected.conflicts, collected.outvoted) == (1, 2)
    [agreement] = collected.agreements
    interval = binomtest(1, 2).proportion_ci(method="wilson")
    assert agreement.judgements == 2
    assert agreement.agreed == pytest.approx((0.5, *interval))
    assert agreement.kappa == pytest.approx((0.0, 2 * interval.low - 1, 2 * interval.high - 1))
    assert "preferred both ways: 1; pairs left out for it: 2" in collected.summary()
    kept = collect("expert_edits", path, FeedbackConfig(conflicts="keep"))
    assert (len(kept.pairs), kept.conflicts, kept.outvoted) == (4, 1, 0)


def test_the_majority_of_annotators_decides(tmp_path):
    # Ann says the same three times and has one vote; cat contradicts herself and has none.
    records = [edit("a", "b", "ann")] * 3 + [edit("b", "a", "bob"), edit("b", "a", "dan")]
    records += [edit("a", "b", "cat"), edit("b", "a", "cat")]
    collected = collect("expert_edits", write(tmp_path / "in.jsonl", records))
    assert {pair.chosen[0]["content"] for pair in collected.pairs} == {"a"}
    assert len(collected.pairs) == 3
    # Of ann, bob and dan, one pair of three agrees.
    assert collected.agreements[0].agreed.value == pytest.approx(1 / 3)
    # Nobody has a name: each is someone else.
    unnamed = [edit("a", "b")] * 2 + [edit("b", "a")]
    collected = collect("expert_edits", write(tmp_path / "in.jsonl", unnamed))
    assert [pair.chosen[0]["content"] for pair in collected.pairs] == ["b", "b"]


def test_annotators_who_judge_answers_are_compared(tmp_path):
    said = {"ann": (True, True, False, False), "bob": (True, False, False, False)}
    records = [
        judged(f"a{i}", passed, annotator=who)
        for who, all_passed in said.items()
        for i, passed in enumerate(all_passed)
    ]
    collected = collect("criteria", write(tmp_path / "in.jsonl", records))
    agreement = collected.agreements[0]
    assert (agreement.what, agreement.judgements) == ('"ann" and "bob"', 4)
    # κ by hand: agreement 3/4, of which 2/4 · 1/4 + 2/4 · 3/4 = 1/2 by chance.
    assert (agreement.agreed.value, agreement.kappa.value) == pytest.approx((0.75, 0.5))
    [pair] = collected.pairs
    assert pair.scores == (1, 0)
    assert not math.isnan(agreement.kappa.low)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expert_edit", "{in}", "-o", "{out}"], "it is 'expert_edit'; did you mean 'expert_ed"),
        (["expert_edits", "{in}"], "out: must be given; set out=… on"),
        (["expert_edits", "-o", "{out}"], "data: must be given; set data=…"),
        (["expert_edits", "{in}", "-o", "{out}", "margn=1"], "unknown key; did you mean 'margin'"),
        (["expert_edits", "{in}", "-o", "{out}/x/y"], "cannot be written"),
        (["expert_edits", "nowhere.jsonl", "-o", "{out}"], "nowhere.jsonl: cannot be read"),
        (["user_edits", "{in}", "-o", "{out}"], "unknown key \"output\""),
        (["expert_edits", "{same}", "-o", "{out}"], "no line makes a pair"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    names = {
        "in": write(tmp_path / "in.jsonl", [edit("a", "b")]),
        "same": write(tmp_path / "same.jsonl", [edit("a", "a")]),
        "out": str(tmp_path / "out.jsonl"),
    }
    monkeypatch.setattr(sys, "argv", ["collect", *(a.format(**names) for a in arguments)])
    assert run_command(main) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_several_files_and_sources_are_one_collection(tmp_path, capsys):
    one = write(tmp_path / "one.jsonl", [edit("a", "b", "ann")])
    two = write(tmp_path / "two.jsonl", [edit("a", "b", "bob", "Other?")])
    folder = tmp_path / "choices"
    folder.mkdir()
    # The opposite of what Ann made of it.
    write(folder / "three.jsonl", [{"prompt": "When?", "outputs": ["a", "b"], "selected": 0,
                                    "annotator": "cat"}])  # fmt: skip
    out = tmp_path / "pairs.jsonl"
    main(["expert_edits", one, two, f"sources={{user_choice: {folder}}}", "-o", str(out)])
    shown = capsys.readouterr().out
    assert "1 pairs" in shown and "preferred both ways: 1; pairs left out for it: 2" in shown
    [line] = map(json.loads, out.read_text().splitlines())
    assert line["messages"][0]["content"] == "Other?"


def test_unknown_keys_are_kept_as_metadata_and_misspelt_ones_refused(tmp_path):
    record = {**edit("a", "b"), "session": 7, "prompt_id": "p1", "metadata": {"mine": 1}}
    [pair] = collect("expert_edits", write(tmp_path / "in.jsonl", [record])).pairs
    del pair.metadata["feedback"]
    assert pair.metadata == {"mine": 1, "session": 7, "prompt_id": "p1"}
    for key, code in (("edted", "unknown-key"), ("mine", "metadata-twice")):
        path = write(tmp_path / "bad.jsonl", [{**record, key: "x"}])
        [bad] = collect("expert_edits", path, FeedbackConfig(on_error="skip")).bad_lines
        assert bad.code == code


def test_thumbs_become_labelled_data_that_a_run_reads(tmp_path, capsys):
    records = [
        {"prompt": f"q{i}", "output": "At 9.", "label": i % 2 == 0, "time": 1777885200}
        for i in range(4)
    ]
    out = tmp_path / "labelled.jsonl"
    main(["thumbs", write(tmp_path / "in.jsonl", records), "-o", str(out)])
    assert "labelled answers: 4 (2 good, 2 bad)" in capsys.readouterr().out
    read = read_pairs(str(out), DataConfig(path=str(out), test_fraction=0))
    assert [(pair.prompt[0]["content"], pair.label) for pair in read.pairs] == [
        ("q0", True), ("q1", False), ("q2", True), ("q3", False)
    ]  # fmt: skip
    assert read.pairs[0].metadata["feedback"]["time"] == "2026-05-04T09:00:00+00:00"


def test_labels_that_contradict_each_other_are_outvoted(tmp_path):
    def thumb(label, who):
        return {"prompt": "q", "output": "At 9.", "label": label, "annotator": who}

    records = [thumb(True, "ann"), thumb(True, "bob"), thumb(False, "cat")]
    collected = collect("thumbs", write(tmp_path / "in.jsonl", records))
    assert [pair.label for pair in collected.labelled] == [True, True]
    assert (collected.conflicts, collected.outvoted) == (1, 1)


def test_peoples_judgements_become_an_alignment_set(tmp_path):
    records = [
        judged("a", True, annotator="ann", explanation="Short."),
        judged("a", True, annotator="bob"), judged("a", False, annotator="cat"),
        judged("b", False, annotator="ann"), judged("c", True), judged("c", False, annotator="x"),
    ]  # fmt: skip
    out = tmp_path / "alignment.jsonl"
    main(["criteria", write(tmp_path / "in.jsonl", records), f"alignment={out}"])
    people = read_human_judgements(str(out))
    assert [(each.example.completion, each.passed) for each in people] == [
        ("a", True), ("b", False), ("c", None)
    ]  # fmt: skip
    assert people[0].explanation == "Short."
    with pytest.raises(UserError, match="by polite; there are judgements by short"):
        alignment_lines(collect("criteria", str(tmp_path / "in.jsonl")).judged, "polite")

"""Agreement of judges with people, against statsmodels and SciPy."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.inter_rater import cohens_kappa

from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import cohen_kappa, share
from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.evaluation.human_agreement import (
    compare_with_people,
    read_human_judgements,
    write_human_agreement,
)
from jaxdpo.evaluation.judgement import Criterion, Judgement


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 50), (17, 40), (999, 1000)])
def test_a_share_has_wilsons_interval(count, total):
    interval = binomtest(count, total).proportion_ci(method="wilson")
    assert share(count, total) == pytest.approx((count / total, *interval), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_kappa_is_statsmodels(seed):
    rng = random.Random(seed)
    lean, alike = rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.9)
    first = [rng.random() < lean for _ in range(60)]
    second = [a if rng.random() < alike else rng.random() < 0.5 for a in first]
    table = np.zeros((2, 2))
    np.add.at(table, (np.array(first, int), np.array(second, int)), 1)
    expected: Any = cohens_kappa(table)  # its attributes are set dynamically
    kappa = cohen_kappa(first, second)
    assert kappa.value == pytest.approx(expected.kappa, rel=1e-9)
    half = 1.959963984540054 * expected.std_kappa
    assert kappa.high == pytest.approx(min(1, expected.kappa + half), rel=1e-9)
    assert kappa.low == pytest.approx(max(-1, expected.kappa - half), rel=1e-9)


def test_kappa_by_hand_and_where_there_is_none():
    # Agreement 3/4; by chance 2/4 · 1/4 + 2/4 · 3/4 = 1/2.
    assert cohen_kappa([True, True, False, False], [True, False, False, False]).value == 0.5
    assert cohen_kappa([True, False], [True, False]).value == 1
    assert cohen_kappa([True, False], [False, True]).value == -1
    for said in ([], [True, True]):
        assert math.isnan(cohen_kappa(said, said).value)
    assert str(share(0, 0)) == "undefined"


def line(answer, judgement, **more):
    asked = {"role": "user", "content": "At most 2 words!"}
    messages = [asked, {"role": "assistant", "content": answer}]
    return {"messages": messages, "judgement": judgement, **more}


def write(path, lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return str(path)


def test_a_judge_is_compared_with_people(tmp_path):
    lines = [
        *[line("At nine.", "PASS")] * 4, *[line("At nine.", "FAIL")] * 1,
        *[line("At nine o'clock.", "PASS", explanation="Good.")] * 2,
        *[line("At nine o'clock.", "FAIL")] * 3,
    ]  # fmt: skip
    labelled = read_human_judgements(write(tmp_path / "a.jsonl", lines))
    agreement = compare_with_people(criterion_named("word_limit"), labelled)
    assert (agreement.answers, agreement.unjudged) == (10, ())
    figures = ("agreement", "precision", "recall", "fail_precision", "fail_recall", "kappa")
    values = [getattr(agreement, name).value for name in figures]
    # By chance 6/10 · 5/10 + 4/10 · 5/10 = 1/2, so κ = (7/10 − 1/2) / (1/2).
    assert values == pytest.approx([7 / 10, 4 / 5, 4 / 6, 3 / 5, 3 / 4, 0.4])
    assert agreement.precision[1:] == pytest.approx(
        tuple(binomtest(4, 5).proportion_ci(method="wilson"))
    )
    assert [(d.where[-2:], d.person, d.judge) for d in agreement.disagreements] == [
        (":5", "FAIL", "PASS"), (":6", "PASS", "FAIL"), (":7", "PASS", "FAIL")
    ]  # fmt: skip
    last = agreement.disagreements[-1]
    assert (last.completion, last.person_explanation) == ("At nine o'clock.", "Good.")
    assert last.judge_explanation == "3 words of at most 2"
    write_human_agreement(agreement, tmp_path / "alignment.json")
    written = json.loads((tmp_path / "alignment.json").read_text())
    assert written["kappa"]["value"] == pytest.approx(0.4)
    assert len(written["disagreements"]) == 3
    assert ("recall of FAIL", str(agreement.fail_recall)) in agreement.rows()


def test_what_could_not_be_judged_is_no_disagreement(tmp_path):
    said = [Judgement(passed=True), Judgement(explanation="no judgement: it broke")]
    path = write(tmp_path / "a.jsonl", [line("a", "PASS"), line("b", "FAIL")])
    agreement = compare_with_people(
        Criterion("j", lambda examples: iter(said)), read_human_judgements(path)
    )
    assert (agreement.answers, agreement.disagreements) == (1, ())
    assert agreement.unjudged == (f"{path}:2: no judgement: it broke",)
    write_human_agreement(agreement, tmp_path / "alignment.json")
    written = json.loads((tmp_path / "alignment.json").read_text())
    assert written["kappa"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("a", "pass"), "judgement is \"pass\"; write 'PASS' or 'FAIL'"),
        (line("a", "PASS", judgment=1), "unknown key \"judgment\"; did you mean 'judgement'"),
        ({"judgement": "PASS"}, "messages is missing"),
        (line("", "PASS"), "the last message is not the assistant's text"),
        (line("a", "PASS", metadata=3), "metadata is a number"),
    ],
)
def test_a_line_that_is_not_as_documented_is_named(tmp_path, bad, message):
    path = write(tmp_path / "a.jsonl", [line("a", "PASS"), bad])
    with pytest.raises(UserError) as refused:
        read_human_judgements(path)
    assert f"{path}:2: " in str(refused.value) and message in str(refused.value)


def test_openpipes_lines_may_lack_a_judgement_and_answer_by_calls(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    asked = {"role": "user", "content": "Find it"}
    answered = {"role": "assistant", "content": None, "tool_calls": [call]}
    calls = {"messages": [asked, answered], "tools": tools, "split": "TEST", "judgement": "PASS"}
    lines = [calls, {"messages": line("a", "")["messages"], "note": "mine"}, line("b", "FAIL")]
    people = read_human_judgements(write(tmp_path / "a.jsonl", lines))
    assert [each.passed for each in people] == [True, None, False]
    assert people[0].example.tools == tuple(tools)
    assert people[0].example.tool_calls[0]["function"]["name"] == "find"
    judged = []

    def judge(examples):
        judged.extend(examples)
        return (Judgement(passed=bool(each.tool_calls)) for each in examples)

    agreement = compare_with_people(Criterion("calls", judge), people)
    # The answer that nobody has judged costs nothing, and is counted.
    assert [each.completion for each in judged] == ["", "b"]
    assert (agreement.answers, agreement.without_judgement) == (2, 1)
    assert agreement.agreement.value == 1
    assert ("not judged by people", "1") in agreement.rows()
    with pytest.raises(UserError, match="none of its 1 answers has a judgement"):
        read_human_judgements(write(tmp_path / "b.jsonl", lines[1:2]))

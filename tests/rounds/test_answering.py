"""Criteria that see calls and the data's answer; prompts they cannot judge; other margins."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxdpo.cli.console import Reporter
from jaxdpo.data.config import DataConfig
from jaxdpo.data.generations import generation, read_generations
from jaxdpo.data.reading.prompts import PromptsConfig, read_prompts
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.spec import Spec, check_named, criterion_named
from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.evaluation.judgement_file import judge_to_file
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.generation.generators import data_source
from jaxdpo.generation.to_file import sample_to_file
from jaxdpo.rounds.answering import check_judgeable
from jaxdpo.rounds.margins import margin_advice, pairs_by_margin, possible_margins

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = {
    "id": "a",
    "type": "function",
    "function": {"name": "look", "arguments": '{"x": 1, "y": 2}'},
}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def with_reference(messages: Any, completion: str, metadata: Any, reference: Any) -> Judgement:
    """A criterion that asks for the data's answer, and for nothing else beside."""
    return Judgement(passed=completion == reference[-1]["content"])


def by_length(messages: Any, completion: str, metadata: Any) -> Judgement:
    """Scores answers by their length, in tenths."""
    return Judgement(score=len(completion) / 10)


@pytest.fixture
def prompts(tmp_path: Path) -> Any:
    """A pair, a conversation that calls a tool, and a line without an answer."""
    records = [
        {
            "messages": [asked("When?"), {"role": "assistant", "content": "At 9."}],
            "rejected_message": {"role": "assistant", "content": "At 8."},
        },
        {
            "messages": [asked("Look"), {"role": "assistant", "tool_calls": [CALL]}],
            "tools": TOOLS,
            "split": "TRAIN",
        },
        {"messages": [asked("Why?")]},
    ]
    return read_prompts(PromptsConfig(path=lines(tmp_path / "data.jsonl", records))).prompts


def test_the_datas_own_answers_are_read_with_the_prompts(prompts: Any) -> None:
    assert [each.answer[-1].get("content") if each.answer else None for each in prompts] == [
        "At 9.", None, None
    ]  # fmt: skip
    assert prompts[1].answer[-1]["tool_calls"][0]["function"]["name"] == "look"
    assert [bool(each.answer) for each in prompts] == [True, True, False]


def test_the_data_takes_part_as_a_model(prompts: Any, tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    answers = sample_to_file(path, data_source(), prompts[:2], 1)
    assert [each.completion for each in answers] == ["At 9.", ""]
    assert answers[1].tool_calls[0]["function"]["name"] == "look"
    assert read_generations(path) == answers
    with pytest.raises(UserError, match=r"no answer to 1 of 3 prompts \(the first: .*:3\)"):
        sample_to_file(path, data_source(), prompts, 1)


def test_criteria_see_calls_and_the_datas_answer(prompts: Any, tmp_path: Path) -> None:
    same = {"function": {"name": "look", "arguments": {"y": 2, "x": 1}}}
    answers = [
        generation(prompts[0], 0, "m", "at 9!", True),
        generation(prompts[1], 0, "m", "", True, [same]),
        generation(prompts[1], 1, "m", "", True),
        generation(prompts[2], 0, "m", "At 9.", True),
    ]
    specs: list[Spec] = [
        check_named("equals"),
        check_named("tool_calls"),
        check_named(f"{__name__}:with_reference"),
    ]
    path = tmp_path / "judgements.jsonl"
    found = judge_to_file(path, answers[:3], specs[:2]).by_answer(3)
    # Case and punctuation aside the first is the data's answer; arguments are equal in any order.
    assert [(said["equals"].passed, said["tool_calls"].passed) for said in found] == [
        (True, True), (None, True), (None, False)
    ]  # fmt: skip
    assert "expected look" in found[2]["tool_calls"].explanation
    example = Example([asked("When?")], "At 9.", reference=prompts[0].answer)
    assert next(criterion_named(specs[2]).judge([example])).passed
    # Lines of judgements keep what the criterion saw, and still make pairs.
    judged = [json.loads(line) for line in path.read_text().splitlines()]
    assert judged[0]["reference"][0]["content"] == "At 9." and judged[1]["tool_calls"]
    judge_to_file(tmp_path / "calls.jsonl", answers[1:3], [specs[1]])
    assert collect("criteria", str(tmp_path / "calls.jsonl"), FeedbackConfig(on_error="skip"))


def test_answers_by_calls_make_pairs(prompts: Any, tmp_path: Path) -> None:
    answers = [
        generation(prompts[1], 0, "m", "", True, [CALL]),
        generation(prompts[1], 1, "m", "I cannot.", True),
    ]
    judge_to_file(tmp_path / "calls.jsonl", answers, [check_named("tool_calls")])
    pairs = collect("criteria", str(tmp_path / "calls.jsonl")).pairs
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    [pair] = read_pairs(
        str(tmp_path / "pairs.jsonl"), DataConfig.model_validate({"path": ""})
    ).pairs
    assert pair.chosen[0]["tool_calls"][0]["function"]["name"] == "look"
    assert pair.rejected[0]["content"] == "I cannot."


def test_prompts_that_a_criterion_cannot_judge_are_said_before_sampling(
    prompts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"word_limit can judge answers to none of the 3 prompts"):
        check_judgeable([check_named("word_limit")], prompts, Reporter())
    check_judgeable([check_named("similarity"), check_named("json")], prompts, Reporter())
    said = " ".join(capsys.readouterr().out.split())
    # The second's answer has no text, the third has none at all.
    assert "criterion similarity cannot judge answers to 2 of 3 prompts" in said
    assert "criterion json" not in said


def test_other_margins_and_the_pairs_that_they_would_give(prompts: Any, tmp_path: Path) -> None:
    # Scores .1, .3, .7 and .2, .2: differences .2, .4, .6 of the first prompt, none of the second.
    texts = [(0, "a"), (0, "aaa"), (0, "aaaaaaa"), (2, "aa"), (2, "bb")]
    answers = [
        generation(prompts[number], sample, "m", text, True)
        for sample, (number, text) in enumerate(texts)
    ]
    path = tmp_path / "judgements.jsonl"
    judged = judge_to_file(path, answers, [check_named(f"{__name__}:by_length")])
    margins = possible_margins(answers, judged.by_answer(len(answers)))
    # 0.3 - 0.1 is a little less than 0.2 in binary, and no margin may be above the difference.
    assert 0.18 < margins[0] < 0.2 and len(margins) <= 3
    counts = pairs_by_margin(path, margins)
    assert counts[margins[0]] == 3
    made = len(collect("criteria", str(path)).pairs)
    assert made == 1
    first = f"margin={margins[0]:g} would give 3 pairs, 2 more"
    assert margin_advice(counts, made).startswith(first)
    assert margin_advice(counts, 3) == ""

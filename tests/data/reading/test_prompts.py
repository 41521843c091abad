"""Prompts from lines of their own and from preference data of every form."""

import json

import pytest

from jaxdpo.data.reading.prompts import PromptsConfig, read_prompts
from jaxdpo.errors import UserError

ASKED = {"role": "user", "content": "Capital of Tasmania?"}
TOLD = {"role": "assistant", "content": "Hobart"}


def read(tmp_path, lines, **fields):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_prompts(PromptsConfig(path=str(path), **fields))


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [ASKED]},
        {"messages": [ASKED, TOLD]},
        {"messages": [ASKED, TOLD], "rejected_message": {"role": "assistant", "content": "Paris"}},
        {"prompt": "Capital of Tasmania?"},
        {"prompt": [ASKED]},
        {"prompt": "Capital of Tasmania?", "chosen": "Hobart", "rejected": "Paris"},
        {"input": {"messages": [ASKED]}, "preferred_output": [TOLD],
         "non_preferred_output": [{"role": "assistant", "content": "Paris"}]},
    ],
)  # fmt: skip
def test_the_prompt_is_the_same_in_every_form(tmp_path, line):
    found = read(tmp_path, [line]).prompts
    assert [prompt.messages for prompt in found] == [(ASKED,)]
    assert found[0].id == read(tmp_path, [{"messages": [ASKED]}]).prompts[0].id


def test_what_a_line_says_of_its_prompt_is_kept(tmp_path):
    tools = [{"type": "function", "function": {"name": "find"}}]
    line = {"messages": [ASKED], "metadata": {"answer": "Hobart"}, "tools": tools, "split": "TRAIN"}
    (prompt,) = read(tmp_path, [line]).prompts
    assert (prompt.metadata, prompt.tools, prompt.split) == (
        {"answer": "Hobart"},
        tuple(tools),
        "TRAIN",
    )
    assert prompt.source.endswith("prompts.jsonl:1")
    assert prompt.id != read(tmp_path, [{"messages": [ASKED]}]).prompts[0].id


def test_split_limit_and_repeats(tmp_path):
    lines = [{"prompt": f"{n % 5}?", "split": "TEST" if n % 5 < 3 else "TRAIN"} for n in range(10)]
    everything = read(tmp_path, lines)
    assert (len(everything.prompts), everything.repeated) == (5, 5)
    assert everything.summary() == "5 prompts (5 lines that repeat one are left out)"
    assert len(read(tmp_path, lines, split="TEST").prompts) == 3
    assert len(read(tmp_path, lines, split="TEST", limit=2).prompts) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"prompt": "ok"}, {"question": "?"}], r"prompts.jsonl:2: has question; write messages"),
        ([{"messages": [{"role": "system", "content": "x"}]}], r"prompts.jsonl:1: .*no user"),
        ([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}], "holds token ids"),
        ([{"prompt": "x", "split": "TRAIN"}], "holds no prompts of the TEST split"),
        ([{"messages": [ASKED], "mesages": 1}], 'unknown key "mesages"; did you mean'),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, lines, split="TEST")

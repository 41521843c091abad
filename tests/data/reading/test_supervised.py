"""Supervised examples: conversations without a rejected answer, the last answer or all of them."""

import json

import numpy as np
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchConfig, Packer, scoring_shape
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError


def say(role, content):
    return {"role": role, "content": content}


TALK = [
    say("system", "Be brief."),
    say("user", "Capital of Tasmania?"),
    say("assistant", "Hobart"),
    say("user", "And of Victoria?"),
    say("assistant", "Melbourne"),
]


def write(tmp_path, *lines):
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_last_answer_or_all(tmp_path):
    path = write(tmp_path, {"messages": TALK, "split": "TRAIN", "metadata": {"id": 3}})
    (last,) = read_pairs(path, DataConfig(path=path), supervised=True).pairs
    assert (last.prompt, last.chosen, last.rejected) == (tuple(TALK[:4]), (TALK[4],), ())
    assert last.metadata == {"id": 3}
    first, second = read_pairs(path, DataConfig(path=path, turns="all"), supervised=True).pairs
    assert (first.prompt, first.chosen, first.rejected) == (tuple(TALK[:2]), (TALK[2],), ())
    assert second == last


def test_the_turns_of_a_conversation_never_straddle_the_splits(tmp_path):
    talks = [[TALK[0], say("user", f"Question {n}"), *TALK[2:]] for n in range(40)]
    path = write(tmp_path, *({"messages": talk} for talk in talks))
    config = DataConfig(path=path, turns="all", test_fraction=0.5)
    pairs = read_pairs(path, config, supervised=True).pairs
    splits = {}
    for pair in pairs:
        splits.setdefault(pair.source, set()).add(pair.split)
    assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"TRAIN", "TEST"}


def test_a_preference_line_is_taken_for_its_chosen_answer(tmp_path):
    line = {"messages": TALK, "rejected_message": say("assistant", "Sydney"), "split": "TRAIN"}
    path = write(tmp_path, line)
    (example,) = read_pairs(path, DataConfig(path=path), supervised=True).pairs
    assert (example.chosen, example.rejected) == ((TALK[4],), ())


def test_without_supervision_a_rejected_answer_is_needed(tmp_path):
    path = write(tmp_path, {"messages": TALK, "split": "TRAIN"})
    with pytest.raises(UserError, match=r"examples.jsonl:1: rejected_message is missing"):
        read_pairs(path, DataConfig(path=path))


def test_an_empty_answer_among_all_is_named(tmp_path):
    talk = [*TALK[:2], say("assistant", " "), *TALK[3:]]
    path = write(tmp_path, {"messages": talk, "split": "TRAIN"})
    with pytest.raises(UserError, match=r"messages\[2\].content is only white space"):
        read_pairs(path, DataConfig(path=path, turns="all"), supervised=True)


def test_tokens_and_layout_are_the_pairs_without_the_rejected(make_tokenizer, tmp_path):
    lines = [
        {
            "messages": [say("user", f"Question {n}"), say("assistant", "yes " * (n + 1))],
            "rejected_message": say("assistant", "no"),
            "split": "TRAIN",
        }
        for n in range(5)
    ]
    path, chat = write(tmp_path, *lines), Chat(make_tokenizer())
    config = DataConfig(path=path, cache_dir=str(tmp_path / "cache"))
    of_pairs = load_pairs(config, chat).splits["TRAIN"]
    alone = load_pairs(config, chat, supervised=True).splits["TRAIN"]
    for pair, example in zip(of_pairs, alone, strict=True):
        np.testing.assert_array_equal(example.prompt_ids, pair.prompt_ids)
        np.testing.assert_array_equal(example.chosen_ids, pair.chosen_ids)
        assert len(example.rejected_ids) == 0
    for share in (True, False):
        batch_config = BatchConfig(size=5, share_prefix=share)
        total = int(alone.lengths.sum())
        packer = Packer(alone.lengths, batch_config, 1, total, int(alone.lengths.sum(1).max()))
        shape = scoring_shape([packer], layout="sequences")
        (microbatch,) = packer.microbatches(range(5))
        batch = pack_batch(alone, microbatch, shape, share_prefix=share)
        assert (batch.pair_ids > 0).sum() == total
        assert set(np.unique(batch.score_branch)) <= {0, 1}
        assert (batch.score_branch == 1).sum() == alone.lengths[:, 1].sum()
        assert (batch.gather.segment > 0).sum() == total


def test_metadata_is_kept_with_the_tokens(make_tokenizer, tmp_path):
    line = {"messages": TALK, "rejected_message": say("assistant", "Sydney"), "split": "TRAIN"}
    path = write(tmp_path, {**line, "metadata": {"score": 0.5, "who": "é"}}, line)
    config = DataConfig(path=path, cache_dir=str(tmp_path / "cache"))
    pairs = load_pairs(config, Chat(make_tokenizer())).splits["TRAIN"]
    assert [pairs.metadata(index) for index in (0, 1)] == [{"score": 0.5, "who": "é"}, {}]


TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALLED = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"x": 1}}}],
}
ANSWERED = (say("user", "Capital?"), say("assistant", "Hobart"))
REASONED = (say("user", "Capital?"), say("assistant", "Hobart") | {"reasoning_content": "Hmm."})
TALK_WITH_SYSTEM = (say("system", "Be brief."), *ANSWERED)
WITH_CALL = (say("user", "Capital?"), CALLED, say("tool", "[]"), say("assistant", "Hobart"))


def turn(who, value):
    return {"from": who, "value": value}


def parts(text, **more):
    return {"content": [{"type": "text", "value": text}], **more}


EXAMPLES = {
    "alpaca": (
        {"instruction": "Name the", "input": "capital", "output": "Hobart"},
        (say("user", "Name the\ncapital"), say("assistant", "Hobart")),
    ),
    "alpaca without input": (
        {"instruction": "Capital?", "input": "", "output": "Hobart",
         "text": "Below is an instruction that describes a task. Write a response.\n\n"
         "### Instruction:\nCapital?\n\n### Response:\nHobart"},
        ANSWERED,
    ),
    "alpaca with history": (
        {"instruction": "Capital?", "output": "Hobart", "history": [["Hi", "Hello"]],
         "system": "Be brief."},
        (say("system", "Be brief."), say("user", "Hi"), say("assistant", "Hello"), *ANSWERED),
    ),
    "dolly": (
        {"instruction": "Capital?", "context": "Of Tasmania.", "response": "Hobart",
         "category": "open_qa"},
        (say("user", "Capital?\nOf Tasmania."), say("assistant", "Hobart")),
    ),
    "prompt and completion": ({"prompt": "Capital?", "completion": "Hobart"}, ANSWERED),
    "prompt and completion of messages": (
        {"prompt": [say("user", "Capital?")], "completion": [say("assistant", "Hobart")]},
        ANSWERED,
    ),
    "OpenOrca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "Capital?",
         "response": "Hobart"},
        TALK_WITH_SYSTEM,
    ),
    "GSM8K": ({"question": "Capital?", "answer": "Hobart"}, ANSWERED),
    "sharegpt": (
        {"id": "x", "conversations": [turn("system", "Be brief."), turn("human", "Capital?"),
                                      turn("gpt", "Hobart")]},
        TALK_WITH_SYSTEM,
    ),
    "sharegpt with tools": (
        {"conversations": [turn("human", "Capital?"),
                           turn("function_call", '{"name": "find", "arguments": {"x": 1}}'),
                           turn("observation", "[]"), turn("gpt", "Hobart")],
         "tools": json.dumps([{"name": "find", "parameters": {"type": "object"}}])},
        WITH_CALL,
    ),
    "messages with further columns": (
        {"messages": list(ANSWERED), "source": "wiki", "prompt_id": "7", "turns": 1},
        ANSWERED,
    ),
    "ultrachat": (
        {"prompt": "Capital?", "prompt_id": "9f", "messages": list(ANSWERED)},
        ANSWERED,
    ),
    "messages of structs": (
        {"messages": {"role": ["user", "assistant"], "content": ["Capital?", "Hobart"]}},
        ANSWERED,
    ),
    "messages as JSON text": ({"messages": json.dumps(ANSWERED)}, ANSWERED),
    "tool conversation": (
        {"messages": [WITH_CALL[0], {**CALLED, "content": None}, *WITH_CALL[2:]],
         "tools": [TOOL], "parallel_tool_calls": False},
        WITH_CALL,
    ),
    "reasoning in a column": (
        {"Question": "Capital?", "Complex_CoT": "Hmm.", "Response": "Hobart"},
        REASONED,
    ),
    "reasoning in a message": ({"messages": list(REASONED)}, REASONED),
    "LLaMA-Factory v1": (
        {"messages": [parts("Be brief.", role="system", loss_weight=0.0),
                      parts("Capital?", role="user", loss_weight=0.0),
                      parts("Hobart", role="assistant", loss_weight=1.0)]},
        TALK_WITH_SYSTEM,
    ),
    "OpenAI": (
        {"messages": [say("developer", "Be brief."), say("user", "Capital?"),
                      {"role": "assistant", "content": "Hobart", "weight": 1, "refusal": None}]},
        TALK_WITH_SYSTEM,
    ),
    "a refusal": (
        {"messages": [say("user", "Capital?"),
                      {"role": "assistant", "content": None, "refusal": "Hobart"}]},
        ANSWERED,
    ),
    "OpenPipe's request log": (
        {"input": {"model": "m", "messages": [say("system", "Be brief."), say("user", "Capital?")],
                   "temperature": 0.1, "tools": [TOOL]},
         "output": {"id": "c", "object": "chat.completion", "usage": {"total_tokens": 3},
                    "choices": [{"index": 0, "finish_reason": "stop",
                                 "message": say("assistant", "Hobart") | {"refusal": None}}]},
         "tags": {"prompt_id": "capital"}},
        TALK_WITH_SYSTEM,
    ),
    "a preference": (
        {"prompt": "Capital?", "chosen": "Hobart", "rejected": "Paris"},
        ANSWERED,
    ),
    "rendered text": (
        {"text": "<s>[INST] Capital? [/INST] Hobart</s>"},
        ANSWERED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_the_forms_that_they_come_in(tmp_path, name):
    row, conversation = EXAMPLES[name]
    path = write(tmp_path, row)
    [example] = read_pairs(path, DataConfig(path=path, test_fraction=0), supervised=True).pairs
    assert (*example.prompt, *example.chosen) == conversation
    assert example.rejected == ()
    if "tools" in name or "log" in name:
        assert example.tools == (TOOL,)
    if "log" in name:
        assert example.metadata == {"prompt_id": "capital"}


@pytest.mark.parametrize("template", ["llama3", "chatml"])
def test_plain_text_is_trained_without_a_template(make_tokenizer, tmp_path, template):
    texts = [f"Rivers {n} are long.\n\nThey <|im_end|> end." for n in range(20)]
    path = write(tmp_path, *({"text": text, "url": "x/y", "id": 3} for text in texts))
    config = DataConfig(path=path, cache_dir=str(tmp_path / "cache"), test_fraction=0.5)
    chat = Chat(make_tokenizer("bytes", template))
    splits = load_pairs(config, chat, supervised=True).splits
    tokenizer = chat.tokenizer
    begin = tokenizer.bos_token_id
    begin = tokenizer.eos_token_id if begin is None else begin
    read = read_pairs(path, config, supervised=True)
    by_split = {split: [p.chosen[0]["content"] for p in read.pairs if p.split == split]
                for split in splits}  # fmt: skip
    # Equal texts would go to one split; these are drawn one by one.
    assert min(map(len, by_split.values())) > 2 and not read.report.leaked
    for split, pairs in splits.items():
        for text, example in zip(by_split[split], pairs, strict=True):
            assert example.prompt_ids.tolist() == [begin]
            assert example.chosen_ids[-1] == tokenizer.eos_token_id
            # What the text spells stays text.
            assert tokenizer.decode(example.chosen_ids[:-1]) == text
            assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in example.chosen_ids[:-1]


def test_messages_of_weight_0_are_no_examples(tmp_path):
    talk = [say("user", "a"), say("assistant", "b") | {"weight": 0}, say("user", "c"),
            say("assistant", "d") | {"loss_weight": 1.0}, say("user", "e"),
            say("assistant", "f") | {"train": False}]  # fmt: skip
    path = write(tmp_path, {"messages": talk, "split": "TRAIN"})

    def learnt(turns):
        config = DataConfig(path=path, turns=turns)
        pairs = read_pairs(path, config, supervised=True).pairs
        # A weight says nothing to a chat template.
        assert not any("weight" in message for pair in pairs for message in pair.prompt)
        return [pair.chosen for pair in pairs]

    assert learnt("all") == learnt("last") == [(say("assistant", "d"),)]
    silent = [say("user", "a"), say("assistant", "b") | {"weight": 0}]
    path = write(tmp_path, {"messages": talk, "split": "TRAIN"}, {"messages": silent})
    report = read_pairs(path, DataConfig(path=path), supervised=True).report
    assert report.left_out == {"weight 0": 1}
    path = write(tmp_path, {"messages": [say("user", "a"), say("assistant", "b") | {"weight": 2}]})
    with pytest.raises(UserError, match=r"messages\[1\].weight is 2; write 0 or 1"):
        read_pairs(path, DataConfig(path=path), supervised=True)


def test_answers_found_bad_are_no_examples(tmp_path):
    rows = [{"prompt": f"Q{i}?", "completion": f"A{i}", "label": i % 2} for i in range(4)]
    path = write(tmp_path, *rows)
    result = read_pairs(path, DataConfig(path=path, test_fraction=0), supervised=True)
    assert [pair.chosen[0]["content"] for pair in result.pairs] == ["A1", "A3"]
    assert result.report.left_out == {"label false": 2}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Q?"}, "no known form of examples"),
        ({"instruction": "Do", "context": "a b.", "input": "c d.", "output": "x"}, "nothing reads"),
        ({"prompt": "Q?", "completion": "A", "passage": "Read this."}, "passage is"),
        ({"input": {"messages": [say("user", "Q?")]}, "output": {"error": "late"}}, "no message"),
        ({"prompt": "Q?", "completion": ""}, "completion.content is empty"),
    ],
)
def test_examples_that_say_more_or_less_are_refused(tmp_path, row, said):
    path = write(tmp_path, row)
    with pytest.raises(UserError, match=r"examples\.jsonl") as caught:
        read_pairs(path, DataConfig(path=path, test_fraction=0), supervised=True)
    assert said in str(caught.value)

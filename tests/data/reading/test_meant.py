"""The model is trained on what the file says it was asked; nothing is guessed, nothing dropped."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.prompts import PromptsConfig, read_prompts
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError

Q, GOOD, BAD, SYS = "Name a river of Europe.", "The river Danube.", "The river Nile.", "Be terse."
DEEP_BEGIN, DEEP_END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def say(role, content):
    return {"role": role, "content": content}


def write(folder, *records, name="rows.jsonl"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(path, supervised=False, **fields):
    config = DataConfig(path=str(path), **{"test_fraction": 0.0, **fields})
    return read_pairs(config.path, config, supervised=supervised)


@pytest.mark.parametrize(
    "name", ["question", "input", "query", "instruction", "context", "history", "problem"]
)
def test_a_question_beside_two_answers_is_the_prompt(tmp_path, name):
    row = {name: Q, "chosen": GOOD, "rejected": BAD}
    [pair] = read(write(tmp_path, row)).pairs
    assert (pair.prompt, pair.metadata) == ((say("user", Q),), {})
    assert pair.chosen == (say("assistant", GOOD),)


@pytest.mark.parametrize("name", ["system", "system_prompt", "systemMessage", "System Prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": GOOD, "rejected": BAD},
        {"prompt": [say("user", Q)], "chosen": GOOD, "rejected": BAD},
        {"messages": [say("user", Q), say("assistant", GOOD)],
         "rejected_message": say("assistant", BAD)},
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}",
         "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
        {"prompt": Q, "completion": GOOD, "label": True},
        {"messages": [say("user", Q), say("assistant", GOOD)], "label": True},
    ],
)  # fmt: skip
def test_a_system_prompt_is_used_in_every_form(tmp_path, row, name):
    [pair] = read(write(tmp_path, {**row, name: SYS})).pairs
    assert pair.prompt == (say("system", SYS), say("user", Q))


# Each: a prompt as a template renders it, and what opens and ends an answer there.
RENDERED = {
    "ChatML": (
        f"<|im_start|>system\n{SYS}<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n"
        "<|im_start|>assistant\n", "<|im_end|>\n"),
    "Llama 2": (f"<s>[INST] <<SYS>>\n{SYS}\n<</SYS>>\n\n{Q} [/INST]", " </s>"),
    "Mistral": (f"<s>[SYSTEM_PROMPT] {SYS}[/SYSTEM_PROMPT][INST] {Q} [/INST]", "</s>"),
    "Llama 3": (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYS}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{Q}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "Gemma": (
        f"<bos><start_of_turn>system\n{SYS}<end_of_turn>\n<start_of_turn>user\n{Q}<end_of_turn>\n"
        "<start_of_turn>model\n", "<end_of_turn>\n"),
    "Phi": (f"<|system|>\n{SYS}<|end|>\n<|user|>\n{Q}<|end|>\n<|assistant|>\n", "<|end|>"),
    "Zephyr": (f"<|system|>\n{SYS}</s>\n<|user|>\n{Q}</s>\n<|assistant|>\n", "</s>"),
    "DeepSeek": (f"{DEEP_BEGIN}{SYS}<｜User｜>{Q}<｜Assistant｜><think>\n", DEEP_END),
    "Granite": (
        f"<|start_of_role|>system<|end_of_role|>{SYS}<|end_of_text|>\n<|start_of_role|>user"
        f"<|end_of_role|>{Q}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>"),
    "Command R": (
        f"<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{SYS}<|END_OF_TURN_TOKEN|>"
        f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{Q}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "Alpaca": (f"{SYS}\n\n### Instruction:\n{Q}\n\n### Response:\n", "</s>"),
    "Vicuna": (f"{SYS} USER: {Q} ASSISTANT:", "</s>"),
    "NeMo": (f"<extra_id_0>System\n{SYS}\n<extra_id_1>User\n{Q}\n<extra_id_1>Assistant\n", ""),
    "Guanaco": (f"### System: {SYS}\n### Human: {Q}\n### Assistant:", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", RENDERED)
def test_a_rendered_prompt_is_read_back(tmp_path, name):
    prompt, end = RENDERED[name]
    row = {"prompt": prompt, "chosen": GOOD + end, "rejected": BAD + end}
    [pair] = read(write(tmp_path, row)).pairs
    assert pair.prompt == (say("system", SYS), say("user", Q))
    assert (pair.chosen, pair.rejected) == ((say("assistant", GOOD),), (say("assistant", BAD),))


@pytest.mark.parametrize("name", [name for name in RENDERED if name != "DeepSeek"])
def test_rendered_conversations_part_where_the_answers_do(tmp_path, name):
    prompt, end = RENDERED[name]
    row = {"chosen": prompt + GOOD + end, "rejected": prompt + BAD + end}
    [pair] = read(write(tmp_path, row)).pairs
    assert pair.prompt == (say("system", SYS), say("user", Q))
    assert (pair.chosen, pair.rejected) == ((say("assistant", GOOD),), (say("assistant", BAD),))
    [example] = read(write(tmp_path, {"text": prompt + GOOD + end}), supervised=True).pairs
    assert (example.prompt, example.chosen) == (pair.prompt, pair.chosen)


@pytest.mark.parametrize("name", ["ChatML", "Llama 2", "Llama 3", "Gemma", "Zephyr"])
def test_a_rendered_prompt_in_a_users_message_is_refused(tmp_path, name):
    prompt, _ = RENDERED[name]
    row = {"messages": [say("user", prompt), say("assistant", GOOD)],
           "rejected_message": say("assistant", BAD)}  # fmt: skip
    with pytest.raises(UserError, match=r"messages\[0\].content was rendered by a chat template"):
        read(write(tmp_path, row))
    # Whoever talks about marks says something before or after them.
    row["messages"][0]["content"] = f"What is {prompt} good for?"
    assert read(write(tmp_path, row)).pairs[0].prompt == (row["messages"][0],)


def test_the_standard_preface_of_alpaca_is_the_templates(tmp_path):
    preface = "Below is an instruction that describes a task, paired with an input. Write it."
    prompt = f"{preface}\n\n### Instruction:\nSum up.\n\n### Input:\n{Q}\n\n### Response:\n"
    [pair] = read(write(tmp_path, {"prompt": prompt, "chosen": GOOD, "rejected": BAD})).pairs
    assert pair.prompt == (say("user", f"Sum up.\n{Q}"),)


@pytest.mark.parametrize(
    "text",
    [
        "Why does <|im_start|> stand before each message?",
        "Human: is what the log says. Explain.",
        "Write a dialogue that begins with\nUser: hello",
        "<s>old</s> is struck through in HTML",
        '{"role": "admin", "rights": "all"}',
        '[{"name": "a", "value": 1}]',
        "### Heading\n\nWhat is Markdown?",
        "[INST] is a mark of which model?",
    ],
)
def test_text_about_templates_and_json_stays_text(tmp_path, text):
    row = {"prompt": text, "chosen": text + " Yes.", "rejected": text + " No."}
    [pair] = read(write(tmp_path, row)).pairs
    assert pair.prompt == (say("user", text),)
    assert pair.chosen == (say("assistant", text + " Yes."),)


def test_ids_that_contain_the_prompt_train_it_once(tmp_path):
    prompt = list(range(10, 30))
    rows = [
        {"prompt_ids": prompt, "chosen_ids": [*prompt, 1, 2], "rejected_ids": [*prompt, 3]},
        {"prompt_input_ids": prompt, "chosen_input_ids": [*prompt, 1, 2],
         "rejected_input_ids": [*prompt, 3], "chosen_attention_mask": [1] * 22,
         "chosen_labels": [-100] * 20 + [1, 2], "prompt": "text", "chosen": "text 1"},
    ]  # fmt: skip
    for row in rows:
        [pair] = read(write(tmp_path, row)).pairs
        assert pair.token_ids == (tuple(prompt), (1, 2), (3,))
        assert pair.metadata == {}
    short = {"prompt_ids": [5], "chosen_ids": [5, 1], "rejected_ids": [5, 2]}
    with pytest.raises(UserError, match=r"begins with the 1 ids of the prompt.*\[token-ids-prompt"):
        read(write(tmp_path, short))


def rows(count, start=0):
    return [
        {"prompt": f"Q{i}?", "chosen": "a", "rejected": "b"} for i in range(start, start + count)
    ]


def splits_of(result):
    return {split: [p.prompt[0]["content"] for p in result.pairs if p.split == split]
            for split in ("TRAIN", "TEST")}  # fmt: skip


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("train.jsonl", "validation.jsonl"),
        ("my_train.jsonl", "my_eval.jsonl"),
        ("train_sft.jsonl", "test_sft.jsonl"),
        ("train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl"),
        ("data/train-00000-of-00002-a1b2.jsonl", "data/test-00000-of-00001-c3.jsonl"),
        ("train/part-0.jsonl", "dev/part-0.jsonl"),
        ("other.jsonl", "valid.jsonl"),
    ],
)
def test_files_keep_the_split_of_their_name(tmp_path, train, test):
    write(tmp_path / "set", *rows(8), name=train)
    write(tmp_path / "set", *rows(8, 8), name=test)
    # Without the names a hash would draw; at 0.0 it never draws TEST.
    expected = {"TRAIN": [f"Q{i}?" for i in range(8)], "TEST": [f"Q{i}?" for i in range(8, 16)]}
    result = read(tmp_path / "set")
    assert splits_of(result) == expected
    assert "files that are a split by their name: TEST 1" in result.report.summary()
    assert splits_of(read(f"{tmp_path}/set/**/*.jsonl")) == expected
    named = {str(tmp_path / "set" / each): 1.0 for each in (train, test)}
    if "/" not in train:
        config = DataConfig(path=named, test_fraction=0.0)
        assert splits_of(read_pairs(named, config)) == expected


def test_a_lines_own_split_goes_before_the_files_and_lone_files_are_drawn(tmp_path):
    write(tmp_path / "a", *rows(4), name="train.jsonl")
    write(tmp_path / "a", *({**row, "split": "train"} for row in rows(4, 4)), name="test.jsonl")
    assert splits_of(read(tmp_path / "a"))["TEST"] == []
    write(tmp_path / "b", *rows(20), name="train-00000-of-00002.jsonl")
    write(tmp_path / "b", *rows(20, 20), name="train-00001-of-00002.jsonl")
    by_hash = splits_of(read(tmp_path / "b", test_fraction=0.5))
    assert len(by_hash["TEST"]) > 5 and len(by_hash["TRAIN"]) > 5
    lone = splits_of(read(write(tmp_path, *rows(40), name="test.jsonl"), test_fraction=0.5))
    assert len(lone["TEST"]) > 5 and len(lone["TRAIN"]) > 5


def test_data_sets_on_disk_and_shards_keep_their_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    parts = {"train": rows(8), "validation": rows(4, 8), "test": rows(2, 12)}
    made = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    datasets.DatasetDict(**made).save_to_disk(str(tmp_path / "saved"))
    for name, part in parts.items():
        folder = tmp_path / "shards" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}-00000-of-00001-ab12.parquet")
    for path in ("saved", "shards"):
        found = splits_of(read(tmp_path / path))
        assert found["TRAIN"] == [f"Q{i}?" for i in range(8)]
        assert sorted(found["TEST"]) == sorted(f"Q{i}?" for i in range(8, 14))
    prompts = read_prompts(PromptsConfig(path=str(tmp_path / "saved"), split="TEST"))
    assert len(prompts.prompts) == 6


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "TRAIN"), ("Training", "TRAIN"), ("train_sft", "TRAIN"), ("test", "TEST"),
     ("validation", "TEST"), ("valid1", "TEST"), ("dev", "TEST"), ("eval", "TEST")],
)  # fmt: skip
def test_names_of_splits_in_lines(tmp_path, name, split):
    path = write(tmp_path, {**rows(1)[0], "split": "TRAIN"}, {**rows(2)[1], "split": name})
    assert read(path).pairs[1].split == split


def test_prompts_alone_with_further_columns(tmp_path):
    lines = [{"prompt": Q, "prompt_id": "p0", "source": "x"}, {"prompt": "And?", "source": "y"}]
    found = read_prompts(PromptsConfig(path=write(tmp_path, *lines))).prompts
    assert [prompt.messages for prompt in found] == [(say("user", Q),), (say("user", "And?"),)]
    assert found[0].metadata == {"prompt_id": "p0", "source": "x"}
    asked = {"question": Q, "system": SYS, "id": 3}
    [prompt] = read_prompts(PromptsConfig(path=write(tmp_path, asked))).prompts
    assert prompt.messages == (say("system", SYS), say("user", Q))


def test_dialogues_that_part_before_the_last_answer_are_refused(tmp_path):
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Help me\n\nAssistant: Sure",
        "rejected": "\n\nHuman: Hi\n\nAssistant: What\n\nHuman: Help?\n\nAssistant: No",
    }
    with pytest.raises(UserError, match=r"rows.jsonl:1: chosen turn 3.role is \"user\""):
        read(write(tmp_path, row))


def test_labels_all_alike_and_texts_without_letters_are_warned_of(tmp_path):
    good = [{"prompt": f"Q{i}?", "completion": "A", "label": True} for i in range(3)]
    summary = read(write(tmp_path, *good)).report.summary()
    assert "warning: all 3 labelled answers are true; KTO needs answers of both labels" in summary
    blank = {"prompt": "\u200b \ufeff", "chosen": "yes", "rejected": "\u200b"}
    result = read(write(tmp_path, *rows(1), blank))
    assert "2 prompts or answers hold only white space" in result.report.summary()
    assert f"(first at {tmp_path}/rows.jsonl:2)" in result.report.summary()
    cut = " ".join(["the long answer goes on and"] * 12)
    many = [{"prompt": f"Q{i}?", "chosen": cut, "rejected": cut + " on."} for i in range(12)]
    assert "12 of 24 long answers end in the middle of a sentence" in (
        read(write(tmp_path, *many)).report.summary()
    )


def test_the_ids_of_a_sampled_answer_stay_beside_its_text(tmp_path):
    sampled = {"ids": [5, 7, 2], "vocabulary": "5f"}
    row = {
        "messages": [say("user", Q), say("assistant", GOOD) | {"sampled": sampled}],
        "rejected_message": say("assistant", BAD) | {"sampled": sampled},
    }
    [pair] = read(write(tmp_path, row)).pairs
    assert pair.chosen[0]["sampled"] == pair.rejected[0]["sampled"] == sampled
    row["rejected_message"] = say("assistant", BAD) | {"sampled": {"ids": "5 7"}}
    with pytest.raises(UserError, match=r"rejected_message.sampled is .*\[sampled-ids\]"):
        read(write(tmp_path, row))
    # An earlier answer's ids change nothing of what is asked, so nothing of the split.
    drawn = set()
    for answer in (say("assistant", "a"), say("assistant", "a") | {"sampled": sampled}):
        talk = [say("user", "b"), answer, say("user", Q)]
        row = {"prompt": talk, "chosen": GOOD, "rejected": BAD}
        lines = [{**row, "prompt": [*talk[:2], say("user", f"{Q} {i}")]} for i in range(40)]
        found = read(write(tmp_path, *lines), test_fraction=0.5)
        drawn.add(tuple(pair.split for pair in found.pairs))
    assert len(drawn) == 1


def test_an_answer_of_which_only_a_part_is_learnt_is_refused(tmp_path):
    call = {"role": "assistant", "weight": 0,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}  # fmt: skip
    told = {"role": "tool", "content": "4", "tool_call_id": "c"}
    row = {"prompt": Q, "chosen": [call, told, say("assistant", GOOD)], "rejected": BAD}
    with pytest.raises(UserError, match=r"chosen\[0\].weight is 0, but other messages"):
        read(write(tmp_path, row))

import dataclasses
import gc
import json
import os
import shutil

import numpy as np
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import PreferencePair, TokenizedPair
from jaxdpo.data.reading.reports import TokenizeReport
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.data.tokenization.pair_store import ROWS_PER_CHUNK, PairWriter, open_pairs
from jaxdpo.data.tokenization.truncation import truncate
from jaxdpo.errors import UserError


def message(role, content):
    return {"role": role, "content": content}


def pair(*prompt, chosen="Hobart", rejected="Paris"):
    good, bad = ((message("assistant", text),) for text in (chosen, rejected))
    return PreferencePair(tuple(prompt), good, bad, "TRAIN")


def questions(count):
    return [pair(message("user", f"Question {i}?")) for i in range(count)]


SYSTEM = message("system", "Be brief.")
TURNS = [
    (message("user", f"Question {i}, about x?"), message("assistant", f"Answer {i}."))
    for i in range(4)
]
TALK = (SYSTEM, *[m for turn in TURNS for m in turn], message("user", "And the capital?"))


@pytest.fixture
def chat(make_tokenizer):
    return Chat(make_tokenizer("bytes", "chatml"))


@pytest.fixture
def config(tmp_path):
    return DataConfig(path=str(tmp_path / "f.jsonl"), cache_dir=str(tmp_path / "cache"))


def write(pairs, config):
    """Writes pairs to the configured file, one a line, all of them TRAIN."""
    lines = [
        {
            "messages": [*each.prompt, *each.chosen],
            "rejected_message": each.rejected[0],
            "metadata": each.metadata,
            "split": "TRAIN",
        }
        for each in pairs
    ]
    with open(config.path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def stored_pairs(pairs, chat, config):
    """The pairs as they are stored, from a file that holds them."""
    write(pairs, config)
    return load_pairs(config, chat).splits["TRAIN"]


def ids_of(chat, messages):
    return chat.encode(messages, add_generation_prompt=True)


@pytest.mark.parametrize("dropped_turns", range(5))
def test_the_oldest_turns_go_first_and_no_more_than_needed(chat, dropped_turns):
    made = pair(*TALK, chosen="Hobart it is", rejected="No")
    whole = chat.encode_pair(made)
    kept = ids_of(chat, [SYSTEM, *TALK[1 + 2 * dropped_turns :]])
    exactly = len(kept) + len(whole.chosen_ids)
    for max_length in (exactly, exactly + 1):
        truncated = truncate(made, whole, chat, max_length)
        assert truncated.tokens is not None
        assert truncated.outcome == ("cut_by_message" if dropped_turns else "whole")
        assert truncated.tokens.prompt_ids.tolist() == kept
        assert truncated.tokens.chosen_ids.tolist() == whole.chosen_ids.tolist()
        assert truncated.tokens.rejected_ids.tolist() == whole.rejected_ids.tolist()


def test_tool_messages_stay_with_the_turn_they_belong_to(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "qwen"))
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turn = (
        message("user", "Weather?"),
        {"role": "assistant", "tool_calls": [call]},
        message("tool", "4°C"),
    )
    made = pair(*TALK, message("assistant", "Well."), *turn)
    whole = chat.encode_pair(made)
    least = ids_of(chat, [SYSTEM, *turn])
    # Room for the answer before as well, but not for the question that it answers.
    longer = ids_of(chat, [SYSTEM, message("assistant", "Well."), *turn])
    for prompt in (least, longer):
        truncated = truncate(made, whole, chat, len(prompt) + len(whole.chosen_ids))
        assert truncated.tokens is not None
        assert truncated.tokens.prompt_ids.tolist() == least


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_a_last_turn_that_is_too_long_loses_tokens_from_the_left(make_tokenizer, template):
    tokenizer = make_tokenizer("bytes", template)
    chat = Chat(tokenizer)
    made = pair(*TALK)
    whole = chat.encode_pair(made)
    longest = max(len(whole.chosen_ids), len(whole.rejected_ids))
    last_turn = ids_of(chat, [SYSTEM, TALK[-1]])
    truncated = truncate(made, whole, chat, 20 + longest)
    assert truncated.tokens is not None
    assert truncated.outcome == "cut_by_token"
    # A template that begins every text with a token of its own keeps it.
    if template == "llama3":
        assert truncated.tokens.prompt_ids.tolist() == last_turn[:1] + last_turn[-19:]
    else:
        assert truncated.tokens.prompt_ids.tolist() == last_turn[-20:]
    assert truncated.tokens.chosen_ids.tolist() == whole.chosen_ids.tolist()


def test_a_template_that_refuses_fewer_turns_leaves_cutting_by_tokens(chat):
    needs_all = (
        "{% if messages | length > 2 and messages[1].content != 'Question 0, about x?' %}"
        "{{ raise_exception('no') }}{% endif %}"
    )
    picky = Chat(chat.tokenizer, needs_all + chat.tokenizer.chat_template)
    made = pair(*TALK)
    whole = picky.encode_pair(made)
    truncated = truncate(made, whole, picky, 64)
    assert truncated.tokens is not None
    assert truncated.outcome == "cut_by_token"
    room = 64 - max(len(whole.chosen_ids), len(whole.rejected_ids))
    assert truncated.tokens.prompt_ids.tolist() == whole.prompt_ids[-room:].tolist()


def test_a_completion_is_never_cut_and_a_pair_without_room_for_a_prompt_is_dropped(chat):
    made = pair(*TALK)
    whole = chat.encode_pair(made)
    longest = max(len(whole.chosen_ids), len(whole.rejected_ids))
    assert truncate(made, whole, chat, longest + 16).outcome == "cut_by_token"
    assert truncate(made, whole, chat, longest + 15) == (None, "dropped")
    short = pair(message("user", "Q"))
    tokens = chat.encode_pair(short)
    length = len(tokens.prompt_ids) + max(len(tokens.chosen_ids), len(tokens.rejected_ids))
    assert len(tokens.prompt_ids) < 16
    assert truncate(short, tokens, chat, length).outcome == "whole"
    assert truncate(short, tokens, chat, length - 1).outcome == "dropped"


def test_stored_pairs_are_what_the_chat_encodes(chat, config):
    pairs = questions(2 * ROWS_PER_CHUNK + 3)
    stored = stored_pairs(pairs, chat, config)
    assert len(stored) == len(pairs) == stored.report.pairs
    expected = [encoded.tokens for encoded in chat.encode_pairs(pairs)]
    for i in [0, 1, ROWS_PER_CHUNK - 1, ROWS_PER_CHUNK, 2 * ROWS_PER_CHUNK, len(pairs) - 1]:
        for ours, theirs in zip(stored[i], expected[i], strict=True):
            assert ours.dtype == np.int32
            assert ours.tolist() == theirs.tolist()
        assert stored.source(i) == f"{config.path}:{i + 1}"
    assert stored.lengths.dtype == np.int32
    assert stored.lengths.tolist() == [[len(ids) for ids in tokens[:3]] for tokens in expected]
    assert stored[np.int64(3)].prompt_ids.tolist() == expected[3].prompt_ids.tolist()
    for index in (-1, len(pairs)):
        with pytest.raises(IndexError):
            stored[index]


def test_no_pairs_are_stored_as_none(chat, config):
    write(questions(2), config)
    stored = load_pairs(config, chat).splits["TEST"]
    assert (len(stored), stored.lengths.shape) == (0, (0, 3))


def stored_folder(config):
    [folder] = (config.cache_folder() / "pairs").iterdir()
    return folder


def without_encoding(monkeypatch):
    monkeypatch.setattr(Chat, "encode_pairs", None)


def test_the_second_time_nothing_is_encoded(chat, config, monkeypatch):
    write([*questions(4), pair(*TALK)], config)
    config = config.model_copy(update={"max_length": 64})
    first = load_pairs(config, chat).splits["TRAIN"]
    without_encoding(monkeypatch)
    second = load_pairs(config, chat).splits["TRAIN"]
    assert second.fingerprint == first.fingerprint
    assert second.report == first.report
    assert second.report.cut_by_message == (f"{config.path}:5",)
    assert [ids.tolist() for ids in second[4]] == [ids.tolist() for ids in first[4]]


def flip(folder):
    content = bytearray((folder / "TRAIN" / "pairs.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "TRAIN" / "pairs.arrow").write_bytes(content)


def cut_off(folder):
    content = (folder / "TRAIN" / "pairs.arrow").read_bytes()
    (folder / "TRAIN" / "pairs.arrow").write_bytes(content[:-100])


def no_about(folder):
    (folder / "TRAIN" / "about.json").unlink()


def half_about(folder):
    text = (folder / "TRAIN" / "about.json").read_text()
    (folder / "TRAIN" / "about.json").write_text(text[: len(text) // 2])


def other_key(folder):
    about = json.loads((folder / "TRAIN" / "about.json").read_text())
    (folder / "TRAIN" / "about.json").write_text(json.dumps({**about, "key": "0" * 64}))


def other_shape(folder):
    (folder / "TRAIN" / "about.json").write_text("[]")


def no_pairs(folder):
    (folder / "TRAIN" / "pairs.arrow").unlink()


def no_report(folder):
    (folder / "about.json").unlink()


def half_report(folder):
    text = (folder / "about.json").read_text()
    (folder / "about.json").write_text(text[: len(text) // 2])


def no_rejects(folder):
    (folder / "rejects.jsonl").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        *(flip, cut_off, no_about, half_about, other_key, other_shape, no_pairs),
        *(no_report, half_report, no_rejects),
    ],
)
def test_damaged_or_foreign_pairs_are_made_anew(chat, config, damage, monkeypatch):
    pairs = questions(20)
    first = stored_pairs(pairs, chat, config)
    damage(stored_folder(config))
    again = load_pairs(config, chat).splits["TRAIN"]
    assert again.fingerprint == first.fingerprint
    assert [t.prompt_ids.tolist() for t in again] == [
        e.tokens.prompt_ids.tolist() for e in chat.encode_pairs(pairs)
    ]
    # Mended for good, and nothing else is left there.
    left = stored_folder(config)
    assert sorted(str(file.relative_to(left)) for file in left.rglob("*") if file.is_file()) == [
        *(
            f"{split}/{name}"
            for split in ("TEST", "TRAIN")
            for name in ("about.json", "pairs.arrow")
        ),
        *("about.json", "rejects.jsonl"),
    ]
    without_encoding(monkeypatch)
    load_pairs(config, chat)


def test_other_pairs_in_the_folder_are_not_taken_for_these(chat, config):
    write(questions(3), config)
    load_pairs(config, chat)
    asked = stored_folder(config)
    elsewhere = config.model_copy(update={"cache_dir": f"{config.cache_dir}-2"})
    write(questions(5), config)
    load_pairs(elsewhere, chat)
    shutil.rmtree(asked)
    stored_folder(elsewhere).rename(asked)
    write(questions(3), config)
    assert len(load_pairs(config, chat).splits["TRAIN"]) == 3


def test_what_is_cut_off_in_the_middle_leaves_nothing(chat, config, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    write(questions(2), config)
    monkeypatch.setattr("jaxdpo.data.tokenization.storing.truncate", stopped)
    with pytest.raises(KeyboardInterrupt):
        load_pairs(config, chat)
    assert list((config.cache_folder() / "pairs").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(chat, config, tmp_path):
    write(questions(2), config)
    (tmp_path / "file").write_text("")
    broken = config.model_copy(update={"cache_dir": str(tmp_path / "file")})
    with pytest.raises(UserError, match=r"file/pairs.*set data\.cache_dir"):
        load_pairs(broken, chat)


def test_the_key_covers_all_that_tokens_depend_on(chat, config, make_tokenizer):
    write(questions(2), config)
    other = Chat(make_tokenizer("bytes", "phi3"))
    changes = [{}, {"max_length": 512}, {"test_fraction": 0.5}, {"format": "messages"}]
    for change in changes:
        load_pairs(config.model_copy(update=change), chat)
    load_pairs(config, other)
    load_pairs(config, chat, supervised=True)
    load_pairs(config.model_copy(update={"turns": "all"}), chat, supervised=True)
    stored = sorted((config.cache_folder() / "pairs").iterdir())
    assert len(stored) == len(changes) + 3
    load_pairs(config.model_copy(update={"on_error": "skip"}), chat)
    assert sorted((config.cache_folder() / "pairs").iterdir()) == stored


def test_the_fingerprint_is_of_ids_and_boundaries_alone(chat, config):
    base = questions(3)
    moved = [dataclasses.replace(p, metadata={"a": 1}) for p in base]
    fingerprints = {
        name: stored_pairs(pairs, chat, config).fingerprint
        for name, pairs in {"base": base, "moved": moved, "turned": base[::-1]}.items()
    }
    assert fingerprints["moved"] == fingerprints["base"] != fingerprints["turned"]


def test_the_fingerprint_tells_the_same_ids_in_other_parts(tmp_path):
    fingerprints = set()
    for i, parts in enumerate([([1, 2], [3], [4]), ([1], [2, 3], [4]), ([1], [2], [3, 4])]):
        with PairWriter(tmp_path / str(i), "key") as writer:
            writer.add(TokenizedPair(*(np.array(part, np.int32) for part in parts)), "f:1")
            writer.finish(TokenizeReport(1))
        stored = open_pairs(tmp_path / str(i), "key")
        assert stored is not None
        assert [ids.tolist() for ids in stored[0]] == [*parts, [], []]
        fingerprints.add(stored.fingerprint)
    assert len(fingerprints) == 3


def test_two_writers_of_the_same_pairs_agree(tmp_path):
    one, two = (np.array([i], np.int32) for i in (1, 2))
    with PairWriter(tmp_path / "a", "key") as first, PairWriter(tmp_path / "a", "key") as second:
        for writer in (first, second):
            writer.add(TokenizedPair(one, one, two), "f:1")
        second.finish(TokenizeReport(1))
        opened = open_pairs(tmp_path / "a", "key")
        first.finish(TokenizeReport(1))
    again = open_pairs(tmp_path / "a", "key")
    assert opened is not None and again is not None
    assert opened[0].rejected_ids.tolist() == [2]
    assert again.fingerprint == opened.fingerprint
    assert [folder.name for folder in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def gemma(make_tokenizer):
    """A chat whose template refuses system messages."""
    return Chat(make_tokenizer("bytes", "gemma"))


def write_lines(file, *systems, split="TRAIN"):
    lines = []
    for i, system in enumerate(systems):
        messages = [SYSTEM] * system + [message("user", f"q{i}"), message("assistant", "a")]
        rejected = message("assistant", "b")
        lines.append({"messages": messages, "rejected_message": rejected, "split": split})
    with open(file, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def test_a_file_becomes_tokens_by_split(chat, config, tmp_path):
    file = tmp_path / "pairs.jsonl"
    write_lines(file, False, True, False)
    write_lines(file, False, split="TEST")
    config = config.model_copy(update={"path": str(file)})
    loaded = load_pairs(config, chat)
    assert {split: len(pairs) for split, pairs in loaded.splits.items()} == {"TRAIN": 3, "TEST": 1}
    assert loaded.report.pairs == {"TRAIN": 3, "TEST": 1}
    assert loaded.splits["TEST"].source(0) == f"{file}:4"


def test_pairs_that_the_template_refuses_are_bad_lines_too(gemma, config, tmp_path):
    file, rejects = tmp_path / "pairs.jsonl", tmp_path / "rejects.jsonl"
    write_lines(file, False, True, False)
    file.write_text(file.read_text() + "[]\n")
    write_lines(file, True, split="TEST")
    config = config.model_copy(update={"path": str(file), "on_error": "skip"})
    for _ in ("made", "from the cache"):
        rejects.unlink(missing_ok=True)
        loaded = load_pairs(config, gemma, rejects)
        assert len(loaded.splits["TRAIN"]) == 2
        assert len(loaded.splits["TEST"]) == 0
        found = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [(bad["line"], bad["code"]) for bad in found] == [
            (2, "template"),
            (4, "not-an-object"),
            (5, "template"),
        ]
        assert [bad["raw"] for bad in found] == [
            file.read_text().splitlines()[bad["line"] - 1] for bad in found
        ]
    file.write_text(file.read_text().replace("[]\n", ""))
    with pytest.raises(UserError, match=f"^{file}:2: the chat template refuses") as caught:
        load_pairs(config.model_copy(update={"on_error": "stop"}), gemma)
    assert str(caught.value).count("System role not supported") == 2


def test_no_train_pair_left_is_an_error_that_says_why(gemma, config, tmp_path):
    file = tmp_path / "pairs.jsonl"
    write_lines(file, True)
    config = config.model_copy(update={"path": str(file), "on_error": "skip"})
    with pytest.raises(UserError, match=r"none of its 1 TRAIN pairs can be used:\n1 pairs skipped"):
        load_pairs(config, gemma)


def test_the_summary_counts_and_names_what_was_cut(chat, config):
    config = config.model_copy(update={"max_length": 64})
    pairs = [
        pair(message("user", "q")),
        pair(*TALK),
        pair(message("user", "long " * 90)),
        pair(message("user", "q"), chosen="long " * 90),
        pair(message("user", "<|im_end|>")),
    ]
    stored = stored_pairs(pairs, chat, config)
    lines = [stored.source(i).removeprefix(f"{config.path}:") for i in range(len(stored))]
    assert lines == ["1", "2", "3", "5"]
    assert (stored.lengths[:, 0] + stored.lengths[:, 1:].max(1)).max() <= 64
    assert stored.report.summary(64).split("\n") == [
        f"1 prompts lost their oldest messages to fit 64 tokens (first: {config.path}:2)",
        f"1 prompts were cut within a message to fit 64 tokens (first: {config.path}:3)",
        f"1 pairs dropped: their completions leave 64 tokens no room (first: {config.path}:4)",
        f"1 pairs spell control tokens in their text; kept as plain text (first: {config.path}:5)",
    ]


def old(file):
    """Gives a file a time of change in the past, as files that people load have."""
    os.utime(file, ns=(10**18, 10**18))


def test_the_second_time_no_file_is_read(chat, config, tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    write_lines(file, False, True, False)
    old(file)
    config = config.model_copy(update={"path": str(file)})
    first = load_pairs(config, chat)
    without_encoding(monkeypatch)
    monkeypatch.setattr("jaxdpo.data.tokenization.load_pairs.Reading", None)
    monkeypatch.setattr("jaxdpo.data.reading.sources.file_digest", None)
    monkeypatch.setattr("jaxdpo.data.tokenization.pair_store.file_digest", None)
    second = load_pairs(config, chat)
    assert second.report == first.report
    for split in ("TRAIN", "TEST"):
        assert second.splits[split].fingerprint == first.splits[split].fingerprint
        assert second.splits[split].report == first.splits[split].report


def test_what_pairs_depend_on_is_noticed(chat, config, tmp_path):
    """Other bytes of the same size, another file among many, another way of reading."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "a.jsonl", False, False)
    config = config.model_copy(update={"path": str(folder), "test_fraction": 0.0})

    def prompts(**changes):
        loaded = load_pairs(config.model_copy(update=changes), chat)
        return [chat.decode(pair.prompt_ids) for pair in loaded.splits["TRAIN"]]

    before = prompts()
    changed = (folder / "a.jsonl").read_text().replace("q0", "r0")
    (folder / "a.jsonl").write_text(changed)
    old(folder / "a.jsonl")
    assert prompts() == [before[0].replace("q0", "r0"), before[1]]
    (folder / "a.jsonl").write_text(changed.replace("r0", "s0"))
    assert prompts() == [before[0].replace("q0", "s0"), before[1]]
    write_lines(folder / "b.jsonl", False)
    assert len(prompts()) == 3
    assert len(prompts(path={str(folder): 2.0})) == 6
    with pytest.raises(UserError, match="input is missing"):
        prompts(format="openai")


def test_bad_lines_stop_a_start_from_the_cache_too(chat, config, tmp_path):
    file, rejects = tmp_path / "pairs.jsonl", tmp_path / "rejects.jsonl"
    write_lines(file, False, False)
    file.write_text(file.read_text() + "[]\n")
    skipping = config.model_copy(update={"path": str(file), "on_error": "skip"})
    assert len(load_pairs(skipping, chat, rejects).splits["TRAIN"]) == 2
    for _ in range(2):
        with pytest.raises(UserError, match=r"pairs.jsonl:3: .*\[not-an-object\]"):
            load_pairs(skipping.model_copy(update={"on_error": "stop"}), chat)


def test_nothing_is_encoded_after_a_bad_line_that_stops(chat, config, tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    file.write_text("1\n")
    write_lines(file, *[False] * 20)
    encoded = []
    monkeypatch.setattr(Chat, "encode_pairs", lambda _, pairs: encoded.extend(pairs) or [])
    with pytest.raises(UserError, match=r"1 bad lines; fix them"):
        load_pairs(config.model_copy(update={"path": str(file)}), chat)
    assert encoded == []
    assert list((config.cache_folder() / "pairs").iterdir()) == []


def test_a_file_that_changes_while_it_is_read_is_refused(chat, config, tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    write_lines(file, False, False)

    def fit_and_change(*given):
        write_lines(file, False)
        return truncate(*given)

    monkeypatch.setattr("jaxdpo.data.tokenization.storing.truncate", fit_and_change)
    with pytest.raises(UserError, match=r"pairs.jsonl: changed while it was read; run again"):
        load_pairs(config.model_copy(update={"path": str(file)}), chat)


def test_stored_tokens_are_compared_with_their_checksum(chat, config):
    stored = stored_pairs(questions(3), chat, config)
    file = stored_folder(config) / "TRAIN" / "pairs.arrow"
    stamp = file.stat()
    content = file.read_bytes()
    wanted = stored[1].prompt_ids.tobytes()
    at = content.index(wanted)
    with open(file, "r+b") as out:
        out.seek(at + len(wanted) - 4)
        out.write(b"\x07")
    # As a disk does it: without a trace in the file's size and time.
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    opened = load_pairs(config, chat).splits["TRAIN"]
    assert [len(opened[i].prompt_ids) for i in (0, 2)] == [
        len(stored[i].prompt_ids) for i in (0, 2)
    ]
    with pytest.raises(
        UserError, match=r"f.jsonl:2: its stored tokens are damaged on disk; remove"
    ):
        opened[1]


def test_few_pairs_are_held_however_many_there_are(chat, config, tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    write_lines(file, *[False] * 4000)
    held = []

    def fit_and_count(*given):
        if len(held) % 1000 == 0:
            held.append(sum(isinstance(each, PreferencePair) for each in gc.get_objects()))
        else:
            held.append(0)
        return truncate(*given)

    monkeypatch.setattr("jaxdpo.data.tokenization.storing.truncate", fit_and_count)
    load_pairs(config.model_copy(update={"path": str(file)}), chat)
    assert len(held) == 4000
    assert 0 < max(held) <= 5 * 128

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

"""The small BPE: any text round-trips, control tokens are single, names are two pieces a word."""

import random

import pytest
from tokenizers import Tokenizer

from jaxdpo.quickstart.task import ENDS, KINDS, STARTS, SYLLABLES, sample_texts
from jaxdpo.quickstart.tokenizer import CONTROL_TOKENS, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, sample_texts(random.Random(0)), SYLLABLES, 576)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_vocabulary_is_as_large_as_asked_for(tokenizer):
    assert tokenizer.get_vocab_size() == 576


def test_any_text_round_trips(tokenizer):
    for text in ("Balex Tozum opens at 9.", "Grüße, 世界!\n\t🎉", "  two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_names_are_two_pieces_a_word_and_numbers_one(tokenizer):
    for start in STARTS:
        for end in ENDS:
            for word in (start + end, f" {start}{end}"):
                assert len(tokenizer.encode(word).ids) == 2, word
    for kind in KINDS:
        for value in kind.values:
            assert len(tokenizer.encode(f" {value}").ids) == 1, value


def test_control_tokens_and_roles_are_single(tokenizer):
    for text in (*CONTROL_TOKENS, "user", "assistant", "system", "tool"):
        assert len(tokenizer.encode(text).ids) == 1, text

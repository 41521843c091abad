"""Tokenizers through GGUF and back: the same ids for any text."""

import json
import re
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.runs.convert import ConvertConfig, convert
from tests.make_tokenizers import TEMPLATES, make_tokenizer

TEXTS = [
    "Hello world, it's 12345 o'clock!  Two  spaces\n\n and\tlines.",
    " begins with a space; ends with one ",
    "Ünïcödé 日本語 🙂 <|im_end|> and <unk>",
    "don't WON'T I'LL re-entrant 3.14159 a1b2",
    "",
]
# The regular expression of Llama 3's published tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def byte_level(splitter: Any) -> PreTrainedTokenizerFast:
    """A BPE of bytes with another way to split text."""
    state = json.loads(make_tokenizer("bytes").backend_tokenizer.to_str())
    state["normalizer"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    backend.pre_tokenizer, backend.decoder = splitter, decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATES["chatml"]
    )


def sentencepiece(template: str) -> PreTrainedTokenizerFast:
    """A BPE of pieces with every merge that leads to a piece, as Llama 2's converted one has."""
    trained = make_tokenizer("llama2", template)
    state = json.loads(trained.backend_tokenizer.to_str())
    # The trainer lists one merge for each piece, in the pieces' order.
    pieces = dict.fromkeys("".join(merge) for merge in state["model"]["merges"])
    known = {piece for piece in state["model"]["vocab"] if piece in pieces or len(piece) == 1}
    state["model"]["merges"] = [
        [piece[:at], piece[at:]]
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=trained.bos_token,
        eos_token=trained.eos_token,
        unk_token="<unk>",
        chat_template=trained.chat_template,
    )


def through_gguf(tokenizer: PreTrainedTokenizerFast, folder) -> Any:
    """The tokenizer that is read from a GGUF file in which this one was written."""
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    target = str(folder / "model.gguf")
    convert(ConvertConfig(source=str(folder / "model"), target=target, format="gguf"))
    convert(ConvertConfig(source=target, target=str(folder / "again")))
    return load_policy(str(folder / "again")).chat.tokenizer


@pytest.mark.parametrize("rule", SPLITTERS)
def test_bytes(rule, tmp_path):
    before = byte_level(SPLITTERS[rule])
    after = through_gguf(before, tmp_path)
    for text in TEXTS:
        ids = before(text).input_ids
        assert after(text).input_ids == ids
        assert after.decode(ids) == before.decode(ids)
    assert after.eos_token == before.eos_token
    assert after.all_special_ids == before.all_special_ids


def test_sentencepiece(tmp_path):
    before = sentencepiece("mistral")
    after = through_gguf(before, tmp_path)
    for text in TEXTS:
        ids = before(text).input_ids
        assert after(text).input_ids == ids, text
        if "<" not in text:
            # The one that was written has no decoder; Llama 2's gives the text back.
            assert after.decode(ids) == text
    assert after.chat_template == before.chat_template


def test_one_that_llama_cpp_does_not_have(tmp_path):
    other = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), SPLITTERS["gpt-2"]]))
    with pytest.raises(UserError, match="no name for how this tokenizer splits text"):
        through_gguf(other, tmp_path)
    with pytest.raises(UserError, match=re.escape("no name for how this tokenizer splits text")):
        # It normalizes: NFC is not GPT-2's.
        through_gguf(make_tokenizer("bytes"), tmp_path)
    # A piece that SentencePiece makes of any two halves, and this BPE of two alone.
    with pytest.raises(UserError, match=r"does not join '.+' and '.+', which llama.cpp would"):
        through_gguf(make_tokenizer("llama2", "mistral"), tmp_path)

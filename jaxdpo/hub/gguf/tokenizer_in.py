"""Vocabulary in GGUF → a tokenizer of transformers."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxdpo.errors import UserError
from jaxdpo.hub.gguf.file import GgufFile
from jaxdpo.hub.gguf.pieces import sentencepiece_merges, sentencepiece_sections
from jaxdpo.hub.gguf.splitting import STEPS, steps_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# gguf.TokenType: tokens that stand for themselves in text, and are never made by merging.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPECIAL_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_TEMPLATE = "tokenizer.chat_template"


def tokenizer_of(file: GgufFile) -> "PreTrainedTokenizerFast":
    """Makes the tokenizer of a GGUF file, with its chat template and special tokens.

    Raises:
      UserError: For a kind of tokenizer that is not read, or a vocabulary that is not whole.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokens = file.value("tokenizer.ggml.tokens", list)
    special = {name: _special(file, key, tokens) for name, key in SPECIAL_KEYS.items()}
    special = {name: token for name, token in special.items() if token is not None}
    kind = file.value("tokenizer.ggml.model", str)
    # Of two ids of one token the tokenizer would never give the first.
    if len(set(tokens)) < len(tokens):
        raise UserError(f"{file.path}: tokenizer.ggml.tokens lists a token twice")
    if kind == "gpt2":
        sections = _byte_level_sections(file, tokens)
    elif kind == "llama":
        sections = _sentencepiece_sections(file, tokens, special.get("unk_token"))
    else:
        raise UserError(
            f"{file.path}: its tokenizer is of the kind {kind!r} (tokenizer.ggml.model); "
            "gpt2 and llama are read"
        )
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(file, tokens),
        "post_processor": _beginning(file, kind, tokens, special.get("bos_token")),
        **sections,
    }
    try:
        backend = Tokenizer.from_str(json.dumps(described))
    # The library raises its own errors as plain Exception.
    except Exception as error:
        raise UserError(f"{file.path}: its vocabulary is damaged: {error}") from error
    # Cleaning up would take spaces out of decoded text that the model did write.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    template = file.metadata.get(_TEMPLATE)
    if template is not None:
        tokenizer.chat_template = _templates(file, template)
    return tokenizer


def _special(file: GgufFile, key: str, tokens: Sequence[str]) -> str | None:
    id = file.metadata.get(key)
    if id is None:
        return None
    if not isinstance(id, int) or not 0 <= id < len(tokens):
        raise UserError(f"{file.path}: {key} is {id!r}; the vocabulary has {len(tokens)} tokens")
    return tokens[id]


def _byte_level_sections(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    """Returns the sections of tokenizer.json for a BPE of bytes, as GPT-2's."""
    merges, name = (
        file.value("tokenizer.ggml.merges", list),
        file.metadata.get("tokenizer.ggml.pre"),
    )
    steps = steps_of(str(name))
    if steps is None:
        raise UserError(
            f"{file.path}: splits text by the rule {name!r} (tokenizer.ggml.pre), which is not "
            f"known here; there are {', '.join(STEPS)}. Take the model's Hugging Face folder "
            "instead"
        )
    model = {
        "type": "BPE",
        "vocab": {token: id for id, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in merges],
        # Llama 3 takes a whole word that is in the vocabulary, whether merges lead to it or not.
        "ignore_merges": steps == STEPS["llama-bpe"],
    }
    return {
        "model": model,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": steps[-1],
    }


def _sentencepiece_sections(
    file: GgufFile, tokens: Sequence[str], unknown: str | None
) -> dict[str, Any]:
    """Returns the sections of tokenizer.json for pieces with scores, as Llama 2's."""
    scores = file.value("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise UserError(f"{file.path}: has {len(tokens)} tokens and {len(scores)} scores of them")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    own = {token for token, kind in zip(tokens, _kinds(file, tokens), strict=True) if kind == 1}
    merges = sentencepiece_merges(vocabulary, scores, own)
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    return sentencepiece_sections(vocabulary, merges, unknown, bool(prefix))


def _kinds(file: GgufFile, tokens: Sequence[str]) -> list[int]:
    kinds = file.value("tokenizer.ggml.token_type", list)
    if len(kinds) != len(tokens):
        raise UserError(f"{file.path}: has {len(tokens)} tokens and {len(kinds)} types of them")
    return kinds


def _added_tokens(file: GgufFile, tokens: Sequence[str]) -> list[dict[str, Any]]:
    # Found in a text before it is normalized or split, as llama.cpp finds them. They are in the
    # model's vocabulary, too, which gives them their ids.
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": id, "content": token, **plain, "special": kind != USER_DEFINED}
        for id, (token, kind) in enumerate(zip(tokens, _kinds(file, tokens), strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _beginning(
    file: GgufFile, kind: str, tokens: Sequence[str], bos: str | None
) -> dict[str, Any] | None:
    """Returns the section that puts BOS before a text, where the file asks for that."""
    # What llama.cpp does where the file does not say.
    default = kind == "llama"
    if bos is None or not file.metadata.get("tokenizer.ggml.add_bos_token", default):
        return None
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    # Nothing here encodes pairs of texts, but the format wants to know how.
    second = [
        {part: {**said, "type_id": 1} for part, said in each.items()} for each in (begin, text)
    ]
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, *second[:1], {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }


def _templates(file: GgufFile, default: str) -> str | dict[str, str]:
    """Returns the chat template, or all of them by name where there are several."""
    named = {
        key.removeprefix(f"{_TEMPLATE}."): text
        for key, text in file.metadata.items()
        if key.startswith(f"{_TEMPLATE}.") and isinstance(text, str)
    }
    return {"default": default, **named} if named else default

"""A tokenizer of transformers → the vocabulary of a GGUF file."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxdpo.errors import UserError
from jaxdpo.hub.gguf.pieces import piece_scores, sentencepiece_merges
from jaxdpo.hub.gguf.splitting import STEPS, rule_of
from jaxdpo.hub.gguf.tokenizer_in import CONTROL, SPECIAL_KEYS, UNKNOWN, USER_DEFINED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# gguf.TokenType, beside those of the module that reads.
_NORMAL, _UNUSED, _BYTE = 1, 5, 6


def vocabulary_of(
    tokenizer: "PreTrainedTokenizerFast", rows: int, ends: Sequence[int]
) -> dict[str, Any]:
    """Returns the metadata of a tokenizer, its special tokens and its chat template.

    Args:
      tokenizer: The tokenizer.
      rows: Rows of the embedding; a token of no use stands for each that the tokenizer lacks.
      ends: Tokens that end an answer; the first is the one that ends text.

    Raises:
      UserError: If llama.cpp has no such tokenizer.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    by_id = {id: token for token, id in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= rows:
        raise UserError(
            f"format=gguf: the tokenizer has the token {max(by_id)}, but the embedding has {rows} "
            "rows; a GGUF file has a token for each row"
        )
    # Embeddings are often padded to a round number of rows, and llama.cpp wants a token for each.
    tokens = [by_id.get(id, f"[PAD{id}]") for id in range(rows)]
    added = {each["id"]: each for each in described["added_tokens"]}
    types = [_NORMAL if id in by_id else _UNUSED for id in range(rows)]
    for id, each in added.items():
        types[id] = CONTROL if each["special"] else USER_DEFINED
    of_kind = _sentencepiece if _is_sentencepiece(described) else _byte_level
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **of_kind(described, tokens, types),
        **_special(tokenizer, ends),
    }
    template = tokenizer.chat_template
    if template:
        named = template if isinstance(template, dict) else {"default": template}
        for name, text in named.items():
            end = "" if name == "default" else f".{name}"
            metadata[f"tokenizer.chat_template{end}"] = text
    return metadata


def _special(tokenizer: "PreTrainedTokenizerFast", ends: Sequence[int]) -> dict[str, Any]:
    """Returns the ids of special tokens, and whether BOS stands before a text."""
    ids = {key: getattr(tokenizer, f"{name}_id") for name, key in SPECIAL_KEYS.items()}
    # llama.cpp stops at two tokens: the end of text, and that of a turn.
    ids["tokenizer.ggml.eos_token_id"] = ends[0]
    if len(ends) > 1:
        ids["tokenizer.ggml.eot_token_id"] = ends[1]
    # By what it does: a tokenizer's field add_bos_token and its post-processor may disagree.
    begun = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return {
        **{key: int(id) for key, id in ids.items() if id is not None},
        "tokenizer.ggml.add_bos_token": begun,
    }


def _is_sentencepiece(described: dict[str, Any]) -> bool:
    return bool(described["model"].get("byte_fallback"))


def _byte_level(
    described: dict[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> dict[str, Any]:
    """Returns what llama.cpp needs of a BPE of bytes, as GPT-2's."""
    rule = rule_of(described["pre_tokenizer"])
    if described["model"]["type"] != "BPE" or described["normalizer"] is not None or rule is None:
        raise UserError(
            "format=gguf: llama.cpp has no name for how this tokenizer splits text; those known "
            f"here are {', '.join(STEPS)}, and SentencePiece's. Convert the model's Hugging Face "
            "folder with llama.cpp's convert_hf_to_gguf.py"
        )
    merges = described["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        # Old tokenizer.json files have a merge as one text already.
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.add_space_prefix": False,
    }


def _sentencepiece(
    described: dict[str, Any], tokens: Sequence[str], types: list[int]
) -> dict[str, Any]:
    """Returns what llama.cpp needs of pieces with scores, as Llama 2's; marks bytes in `types`."""
    normalizers = (described["normalizer"] or {}).get("normalizers", [])
    kinds = [each["type"] for each in normalizers]
    if described["pre_tokenizer"] is not None or kinds not in (["Prepend", "Replace"], ["Replace"]):
        raise UserError(
            "format=gguf: this tokenizer treats spaces otherwise than Llama 2's; convert the "
            "model's Hugging Face folder with llama.cpp's convert_hf_to_gguf.py"
        )
    unknown = described["model"]["unk_token"]
    # llama.cpp finds the 256 pieces that stand for bytes by their type and not by their text.
    for id, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[id] = _BYTE
        elif token == unknown:
            types[id] = UNKNOWN
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in described["model"]["merges"]]
    scores = piece_scores(tokens, merges)
    own = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    ids = {token: id for id, token in enumerate(tokens)}
    # SentencePiece knows pieces and no merges: it joins any two whose joined piece there is.
    listed = {tuple(merge) for merge in merges}
    missing = [m for m in sentencepiece_merges(ids, scores, own) if tuple(m) not in listed]
    if missing:
        raise UserError(
            f"format=gguf: the tokenizer does not join {missing[0][0]!r} and {missing[0][1]!r}, "
            f"which llama.cpp would, as it does {len(missing)} pairs; its ids would be others"
        )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": kinds[0] == "Prepend",
    }

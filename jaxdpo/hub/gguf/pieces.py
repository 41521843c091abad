"""SentencePiece's BPE: pieces with scores in GGUF ↔ merges in tokenizer.json.

SentencePiece joins the two neighbours whose joined piece has the highest score; a BPE of
`tokenizers` joins those whose merge comes first in a list. They are the same where the merges are
listed by the score of what they make.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxdpo.errors import UserError

_SPACE = "▁"


def sentencepiece_merges(
    vocabulary: Mapping[str, int], scores: Sequence[float], own: Collection[str]
) -> list[list[str]]:
    """Lists every merge of two pieces to a third, the highest score first.

    Args:
      vocabulary: Piece ↦ id.
      scores: Of each piece, by id.
      own: Pieces that are made by merging: no control tokens, bytes or added tokens.
    """
    merges = []
    for piece in own:
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in own and right in own:
                # Where two merges make the same piece, which is first does not matter: both have
                # one score, and the leftmost place is joined.
                key = (-scores[vocabulary[piece]], vocabulary[piece], at)
                merges.append((key, [left, right]))
    return [merge for _, merge in sorted(merges)]


def sentencepiece_sections(
    vocabulary: Mapping[str, int], merges: list[list[str]], unknown: str | None, prefix: bool
) -> dict[str, Any]:
    """Returns the sections of tokenizer.json for such a vocabulary.

    Args:
      vocabulary: Piece ↦ id.
      merges: As `sentencepiece_merges` lists them.
      unknown: The token of what no piece and no byte stands for.
      prefix: Whether a space is put before a text.
    """
    marks = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    spaces = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    if prefix:
        marks = [{"type": "Prepend", "prepend": _SPACE}, *marks]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [*spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "model": {
            "type": "BPE",
            "vocab": dict(vocabulary),
            "merges": merges,
            "unk_token": unknown,
            "fuse_unk": True,
            # What no piece covers is spelled in bytes, <0x00> to <0xFF>.
            "byte_fallback": True,
        },
        "normalizer": {"type": "Sequence", "normalizers": marks},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def piece_scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Returns a score for each piece, by which SentencePiece joins as a list of merges does.

    Args:
      tokens: The pieces, by id.
      merges: Pairs of pieces, the one that is joined first in front.

    Raises:
      UserError: If the merges that make one piece do not stand together, so that no score of the
        piece can put them where they are.
    """
    scores: dict[str, float] = {}
    last = None
    for left, right in merges:
        made = left + right
        if made in scores and made != last:
            raise UserError(
                f"format=gguf: the tokenizer's merges to {made!r} do not stand together, which "
                "pieces with scores cannot express"
            )
        if made not in scores:
            scores[made] = -float(len(scores))
        last = made
    # A character that no merge makes is never joined, so its score is not read.
    return [scores.get(token, 0.0) for token in tokens]

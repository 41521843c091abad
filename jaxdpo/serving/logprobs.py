"""Log-probabilities in the two forms of OpenAI's interface."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.sampling.logprobs import TokenLogprobs


def token_text(chat: Chat, token: int) -> str:
    """Returns a token's own text, special tokens included."""
    text = str(chat.tokenizer.decode([token], skip_special_tokens=False))
    # Decoders of SentencePiece drop the space before the first token, which is part of this one.
    named = chat.tokenizer.convert_ids_to_tokens(token)
    starts = isinstance(named, str) and named.startswith("▁") and not text.startswith(" ")
    return f" {text}" if starts else text


def chat_logprobs(
    chat: Chat, ids: Sequence[int], logprobs: TokenLogprobs, top: int
) -> list[dict[str, Any]]:
    """Returns log-probabilities as a chat completion has them, an entry a token.

    Args:
      chat: The tokenizer.
      ids: The tokens.
      logprobs: Theirs, in their order.
      top: How many of the likeliest tokens each entry has.
    """
    return [
        _entry(chat, token, own)
        | {"top_logprobs": [_entry(chat, *each) for each in list(likeliest)[:top]]}
        for token, own, likeliest in _by_token(ids, logprobs)
    ]


def plain_logprobs(
    chat: Chat, ids: Sequence[int], logprobs: TokenLogprobs, top: int, skipped: int
) -> dict[str, list[Any]]:
    """Returns log-probabilities as a plain completion has them, a list a kind.

    Args:
      chat: The tokenizer.
      ids: The tokens.
      logprobs: Theirs, in their order; those of the first ones may be missing.
      top: How many of the likeliest tokens each place has, beside its own.
      skipped: How many tokens at the beginning have none: the first of a prompt.
    """
    texts = [token_text(chat, token) for token in ids]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    own: list[float | None] = [None] * skipped
    tops: list[dict[str, float] | None] = [None] * skipped
    for token, logprob, likeliest in _by_token(ids[skipped:], logprobs):
        own.append(logprob)
        found: dict[str, float] = {}
        # Different tokens may have one text; the likeliest comes first and keeps it.
        for other, its in [*list(likeliest)[:top], (token, logprob)]:
            found.setdefault(token_text(chat, other), its)
        tops.append(found)
    return {
        "tokens": texts,
        "token_logprobs": own,
        "top_logprobs": tops,
        "text_offset": offsets[:-1],
    }


def _by_token(
    ids: Sequence[int], logprobs: TokenLogprobs
) -> Iterator[tuple[int, float, Iterator[tuple[int, float]]]]:
    """Yields each token with its log-probability, and the likeliest ones with theirs."""
    # JSON has no −∞, which a token that cannot be would have; OpenAI writes this number for it.
    least = -9999.0
    own, top = (np.maximum(each, least).tolist() for each in (logprobs.of_token, logprobs.top))
    top_ids = logprobs.top_ids.tolist()
    for token, logprob, others, values in zip(ids, own, top_ids, top, strict=True):
        yield token, logprob, zip(others, values, strict=True)


def _entry(chat: Chat, token: int, logprob: float) -> dict[str, Any]:
    text = token_text(chat, token)
    # A part of a character has bytes that this text does not say.
    written = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": written}


def joined_logprobs(parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
    """Returns the log-probabilities of consecutive parts of one sequence as one."""
    if not parts:
        nothing = np.zeros((0, 1), np.float32)
        return TokenLogprobs(nothing[:, 0], nothing, nothing)
    return TokenLogprobs(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))

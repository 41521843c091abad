"""Pairs that are too long: what is cut from the prompt, and when there is no use in cutting."""

from typing import Literal, NamedTuple

import numpy as np

from jaxdpo.data.chat import Chat
from jaxdpo.data.pairs import PreferencePair, TokenizedPair
from jaxdpo.data.records import BadPair

# Answers that leave their prompt less room than this would be learnt as answers to nothing.
MIN_PROMPT_TOKENS = 16

Outcome = Literal["whole", "cut_by_message", "cut_by_token", "dropped"]


class Fitted(NamedTuple):
    """A pair's tokens, none if it was dropped, and what was done to them."""

    tokens: TokenizedPair | None
    outcome: Outcome


def fit(pair: PreferencePair, tokens: TokenizedPair, chat: Chat, max_length: int) -> Fitted:
    """Makes prompt and longer completion fit into `max_length` tokens; completions stay whole.

    The prompt first loses its oldest turns, as few as needed; it keeps the system message and the
    last user's turn. If those alone are too long, it loses tokens from the left, all but the token
    that begins every text (BOS).

    Args:
      pair: The pair.
      tokens: The pair as it was encoded.
      chat: What encoded it.
      max_length: Most tokens of prompt and one completion.
    """
    room = _room(tokens, max_length)
    if len(tokens.prompt_ids) <= room:
        return Fitted(tokens, "whole")
    if room < min(MIN_PROMPT_TOKENS, len(tokens.prompt_ids)):
        return Fitted(None, "dropped")
    shortest = tokens
    for start in _turn_starts(pair):
        kept = (*_system(pair), *pair.prompt[start:])
        encoded = chat.encode_pairs([_with_prompt(pair, kept)])[0]
        if isinstance(encoded, BadPair):
            continue
        shortest = encoded.tokens
        if len(shortest.prompt_ids) <= _room(shortest, max_length):
            return Fitted(shortest, "cut_by_message")
    prompt = shortest.prompt_ids
    begin = prompt[:1] if prompt[0] == chat.tokenizer.bos_token_id else prompt[:0]
    rest = prompt[len(prompt) - _room(shortest, max_length) + len(begin) :]
    return Fitted(shortest._replace(prompt_ids=np.concatenate([begin, rest])), "cut_by_token")


def _room(tokens: TokenizedPair, max_length: int) -> int:
    return max_length - max(len(tokens.chosen_ids), len(tokens.rejected_ids))


def _system(pair: PreferencePair) -> tuple[dict, ...]:
    return pair.prompt[:1] if pair.prompt[0]["role"] == "system" else ()


def _turn_starts(pair: PreferencePair) -> list[int]:
    """Where a user's turn starts, the first one aside: the prompt may begin at each of these."""
    starts = [i for i, message in enumerate(pair.prompt) if message["role"] == "user"]
    return starts[1:]


def _with_prompt(pair: PreferencePair, prompt: tuple[dict, ...]) -> PreferencePair:
    return PreferencePair(prompt, pair.chosen, pair.rejected, pair.split, pair.tools)

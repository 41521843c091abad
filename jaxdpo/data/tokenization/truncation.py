"""Truncation of pairs that are too long: what the prompt loses, and when a pair is dropped."""

import bisect
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import PreferencePair, TokenizedPair
from jaxdpo.data.tokenization.chat import Chat

# Answers that leave their prompt less room than this would be learnt as answers to nothing.
MIN_PROMPT_TOKENS = 16

Outcome = Literal["whole", "cut_by_message", "cut_by_token", "dropped"]


class Truncated(NamedTuple):
    """A pair's tokens, none if it was dropped, and what was done to them."""

    tokens: TokenizedPair | None
    outcome: Outcome


def truncate(pair: PreferencePair, tokens: TokenizedPair, chat: Chat, max_length: int) -> Truncated:
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
        return Truncated(tokens, "whole")
    if room < min(MIN_PROMPT_TOKENS, len(tokens.prompt_ids)):
        return Truncated(None, "dropped")
    shortest = _with_fewer_turns(pair, tokens, chat, room)
    room = _room(shortest, max_length)
    if len(shortest.prompt_ids) <= room:
        return Truncated(shortest, "cut_by_message")
    # From the left: what the model is asked stands at the end.
    prompt = shortest.prompt_ids
    begin = prompt[:1] if prompt[0] == chat.tokenizer.bos_token_id else prompt[:0]
    rest = prompt[len(prompt) - room + len(begin) :]
    return Truncated(shortest._replace(prompt_ids=np.concatenate([begin, rest])), "cut_by_token")


def _room(tokens: TokenizedPair, max_length: int) -> int:
    return max_length - max(len(tokens.chosen_ids), len(tokens.rejected_ids))


def _with_fewer_turns(
    pair: PreferencePair, tokens: TokenizedPair, chat: Chat, room: int
) -> TokenizedPair:
    """Removes a pair's oldest turns: as few as make the prompt fit, or all but the last.

    Args:
      pair: The pair.
      tokens: Its ids.
      chat: The tokenizer and template that encoded them.
      room: Most tokens of the prompt.
    """
    starts = [i for i, message in enumerate(pair.prompt) if message["role"] == "user"][1:]
    if not starts:
        return tokens
    system = pair.prompt[:1] if pair.prompt[0]["role"] == "system" else ()

    def fits(start: int) -> bool:
        kept = (*system, *pair.prompt[start:])
        try:
            return len(chat.encode(kept, pair.tools, True, pair.template_kwargs)) <= room
        except BadPair:
            return False

    # More turns removed never make a prompt longer, so the fewest are found by bisection: each
    # try renders and encodes the prompt anew.
    first = min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)
    shorter = replace(pair, prompt=(*system, *pair.prompt[starts[first] :]))
    encoded = chat.encode_pairs([shorter])[0]
    # A template may refuse the shorter conversation; then the whole one is cut by tokens.
    return tokens if isinstance(encoded, BadPair) else encoded.tokens

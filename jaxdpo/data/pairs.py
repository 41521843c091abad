"""The two frozen types that preference data passes through before it is planned and packed."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Message = dict[str, Any]
Split = Literal["TRAIN", "TEST"]
NO_SPANS = np.zeros(0, np.int32)
# Field of an assistant's message: the token ids that it was sampled as, and a digest of the
# vocabulary that they belong to, `{"ids": [9, 2], "vocabulary": "5f…"}`. Training takes the ids as
# long as they say what the message does: encoding its text anew may give others.
SAMPLED = "sampled"


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the first preferred to the second; or one, alone or labelled.

    Attributes:
      prompt: Messages before the answer, each `{"role": ..., "content": ..., ...}`.
      chosen: Messages of the preferred answer, usually one, by the assistant.
      rejected: Messages of the other answer, to the same prompt; none in supervised examples and
        labelled answers.
      split: "TRAIN" or "TEST".
      tools: Function definitions handed to the chat template.
      metadata: The user's own fields, a loss may be told to read numbers from it.
      source: Where the pair came from, as `file:line`.
      scores: What chosen and rejected were given by whoever compared them, where that is known.
      template_kwargs: Further variables for the chat template (`enable_thinking`, …).
      token_ids: Prompt, chosen and rejected where the data came as ids; there are no messages then.
      label: Of an answer that was judged by itself, which is `chosen`: whether it was found good.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    split: Split
    tools: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    scores: tuple[float, float] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    token_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    label: bool | None = None


class TokenizedPair(NamedTuple):
    """Token ids of one pair; what the model sees, and nothing else.

    A completion follows the prompt directly. Its tokens are scored, all but those that the
    assistant does not write: answers of tools, and what the template writes around them. The last
    token of a completion is the template's end token.

    Attributes:
      prompt_ids: i32 `[p]`, p ≥ 1.
      chosen_ids: i32 `[c]`, c ≥ 1.
      rejected_ids: i32 `[r]`, r ≥ 1; r = 0 where there is one completion alone.
      chosen_unscored: i32 `[2 * k]`, begin and end of each of k spans of chosen tokens that are not
        scored; most pairs have none.
      rejected_unscored: The same of rejected tokens.
    """

    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    chosen_unscored: np.ndarray = NO_SPANS
    rejected_unscored: np.ndarray = NO_SPANS


def scored_tokens(length: int, unscored: np.ndarray) -> np.ndarray:
    """Returns the places of a completion's scored tokens, increasing.

    >>> scored_tokens(6, np.array([2, 4])).tolist()
    [0, 1, 4, 5]
    """
    scored = np.ones(length, bool)
    for begin, end in unscored.reshape(-1, 2):
        scored[begin:end] = False
    return np.flatnonzero(scored)

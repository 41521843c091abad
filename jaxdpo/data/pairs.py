"""The two frozen types that preference data passes through before it is planned and packed."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Message = dict[str, Any]
Split = Literal["TRAIN", "TEST"]


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the first preferred to the second.

    Attributes:
      prompt: Messages before the answer, each `{"role": ..., "content": ..., ...}`.
      chosen: Messages of the preferred answer, usually one, by the assistant.
      rejected: Messages of the other answer, to the same prompt; none in supervised examples.
      split: "TRAIN" or "TEST".
      tools: Function definitions handed to the chat template.
      metadata: The user's own fields; a loss may be told to read numbers from it.
      source: Where the pair came from, as `file:line`.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    split: Split
    tools: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""


class TokenizedPair(NamedTuple):
    """Token ids of one pair; what the model sees, and nothing else.

    A completion follows the prompt directly, and every one of its tokens is scored. The last token
    of each completion is the template's end token.

    Attributes:
      prompt_ids: i32 `[p]`, p ≥ 1.
      chosen_ids: i32 `[c]`, c ≥ 1.
      rejected_ids: i32 `[r]`, r ≥ 1; r = 0 in supervised examples.
    """

    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray

"""CHES scores by torch, for the tests of ours (https://arxiv.org/abs/2410.08847, definition 2)."""

from typing import Any

import numpy as np
import torch

from jaxdpo.data.pairs import TokenizedPair


def ches_by_torch(model: Any, pair: TokenizedPair) -> tuple[float, float]:
    """The score by sums and by means, the two completions each in a forward pass of its own.

    Args:
      model: A decoder of transformers, in float64.
      pair: Tokens of the pair.
    """
    prompt = len(pair.prompt_ids)
    states = []
    for completion in (pair.chosen_ids, pair.rejected_ids):
        ids = torch.tensor(np.concatenate([pair.prompt_ids, completion])[None].astype(np.int64))
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[0].numpy()
        # h(x, y<k) for k = 1 … |y|: from the prompt's last token to the last but one.
        states.append(hidden[prompt - 1 : -1])
    chosen, rejected = states
    summed = chosen.sum(0) @ rejected.sum(0) - np.square(chosen.sum(0)).sum()
    normalized = chosen.mean(0) @ rejected.mean(0) - np.square(chosen.mean(0)).sum()
    return summed, normalized

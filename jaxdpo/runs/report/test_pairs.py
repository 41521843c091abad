"""The TEST pairs of a run, each with what the model makes of it: `test_pairs.json`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.losses.mixture import implicit_rewards
from jaxdpo.runs.folder import TEST_PAIRS_FILE, RunFolder
from jaxdpo.runs.setup import Setup
from jaxdpo.scoring.scores import CompletionScores

# Pairs that are kept with their texts: those that the model gets most wrong, and for comparison
# some that it gets most right.
_LOWEST, _HIGHEST = 150, 50


def keep_test_pairs(setup: Setup, folder: RunFolder, step: int, policy: CompletionScores) -> None:
    """Writes the TEST pairs with their rewards, lowest margin first.

    Args:
      setup: The run.
      folder: Its folder.
      step: Steps done.
      policy: The policy's scores of the TEST pairs, f32 `[N, 2]`, in the order of the data.
    """
    if setup.test is None or not folder.writes:
        return
    rewards_N2, measure_N, name = _measured(setup, policy)
    # Stable, so that equal margins keep the order of the data and the file is the same again.
    order = np.argsort(measure_N, kind="stable")
    shown = order
    if len(order) > _LOWEST + _HIGHEST:
        shown = np.concatenate([order[:_LOWEST], order[-_HIGHEST:]])
    pairs = [
        {
            "source": setup.test.source.source(int(index)),
            name: float(measure_N[index]),
            **({} if rewards_N2 is None else _rewards(rewards_N2[index])),
            **_texts(setup, int(index)),
        }
        for index in shown
    ]
    folder.write_json(
        TEST_PAIRS_FILE,
        {
            "step": step,
            "measure": name,
            "total": len(order),
            "wrong": int((measure_N < 0).sum()) if name == "margin" else None,
            "pairs": pairs,
        },
    )


def _measured(setup: Setup, policy: CompletionScores) -> tuple[np.ndarray | None, np.ndarray, str]:
    """Returns rewards f32 `[N, 2]`, the figure f32 `[N]` that pairs are ordered by, its name."""
    loss = setup.config.loss
    assert setup.test is not None
    columns = setup.test.columns
    if loss.supervised:
        # A mean, since sums would name the longest answers.
        tokens = np.maximum(np.asarray(policy.tokens)[:, 0], 1)
        return None, np.asarray(policy.plain_logps)[:, 0] / tokens, "logps_per_token"
    scores: CompletionScores = jax.tree.map(jnp.asarray, policy)
    reference = None if columns.reference is None else jnp.asarray(columns.reference)
    rewards_N2 = np.asarray(implicit_rewards(loss, scores, reference))
    if columns.labels is not None:
        # A labelled answer stands alone; the second place holds an answer to another prompt.
        sign = np.where(np.asarray(columns.labels) > 0, 1.0, -1.0)
        return None, sign * rewards_N2[:, 0], "reward_by_label"
    return rewards_N2, rewards_N2[:, 0] - rewards_N2[:, 1], "margin"


def _rewards(of_pair: np.ndarray) -> dict[str, float]:
    return {"chosen_reward": float(of_pair[0]), "rejected_reward": float(of_pair[1])}


def _texts(setup: Setup, index: int) -> dict[str, Any]:
    assert setup.test is not None
    pair, decode = setup.test.source[index], setup.policy.chat.decode
    return {
        "prompt": decode(pair.prompt_ids.tolist()).strip(),
        "chosen": decode(pair.chosen_ids.tolist()).strip(),
        "rejected": decode(pair.rejected_ids.tolist()).strip() if len(pair.rejected_ids) else "",
    }

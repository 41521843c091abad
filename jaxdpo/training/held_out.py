"""Preference metrics of held-out pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import implicit_rewards, loss_sums
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores
from jaxdpo.training.metrics import means, pair_metrics


def preference_metrics(
    config: LossConfig, policy: CompletionScores, columns: PairColumns
) -> dict[str, float]:
    """Computes loss, rewards, accuracies, log-probs and the rest of held-out pairs.

    `rewards/length_correlation` is Pearson's, over pairs, of the reward margin with the chosen
    completion's excess in tokens over the rejected one's; over labelled answers, of the reward with
    the tokens.

    Args:
      config: The loss.
      policy: Scores of all pairs, f32 `[N, 2]`.
      columns: The pairs' own numbers, f32 `[N]`.
    """
    scores: CompletionScores = jax.tree.map(jnp.asarray, policy)
    given: PairColumns = jax.tree.map(jnp.asarray, columns)
    is_pair = jnp.ones(len(policy.logps), bool)
    # All held-out pairs are one step: losses that couple the pairs of a step couple these.
    sums = loss_sums(config, scores, given, is_pair, scores.tokens[:, 0].mean())
    sums |= pair_metrics(config, scores, given, is_pair)
    more: dict[str, float] = {}
    if not config.supervised:
        rewards = implicit_rewards(config, scores, given.reference)
        # A labelled answer stands alone: its second place holds a mismatched answer.
        other = 1.0 if given.labels is None else 0.0
        longer = policy.tokens[:, 0] - other * policy.tokens[:, 1]
        margins = np.asarray(rewards[:, 0] - other * rewards[:, 1])
        if margins.std() > 0 and longer.std() > 0:
            more["rewards/length_correlation"] = float(np.corrcoef(margins, longer)[0, 1])
    return means({name: float(value) for name, value in sums.items()}) | more

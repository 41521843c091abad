"""Preference metrics of held-out pairs."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import implicit_rewards, loss_sums, pair_losses
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


# Half the width of a 95% interval, in standard errors.
_Z = NormalDist().inv_cdf(0.975)


def metric_intervals(
    config: LossConfig, policy: CompletionScores, columns: PairColumns
) -> dict[str, float]:
    """Computes 95% intervals of the mean loss and margin over held-out pairs.

    Each is the mean ± 1.96 standard errors over pairs: what another draw of as many pairs from the
    same source would give, the model being as it is. A loss that sorts the pairs has no value for
    each of them, and so no interval.

    Args:
      config: The loss.
      policy: Scores of all pairs, f32 `[N, 2]`.
      columns: The pairs' own numbers, f32 `[N]`.

    Returns:
      The ends, by the metric's name with `_low` or `_high` behind it.
    """
    scores: CompletionScores = jax.tree.map(jnp.asarray, policy)
    given: PairColumns = jax.tree.map(jnp.asarray, columns)
    per_pair: dict[str, np.ndarray] = {}
    if not config.sorts:
        is_pair = jnp.ones(len(policy.logps), bool)
        losses = pair_losses(config, scores, given, is_pair, scores.tokens[:, 0].mean())
        weighted = [weight * losses[name] for name, weight in config.weighted_types()]
        weights = 1.0 if given.weights is None else np.asarray(given.weights)
        per_pair["loss"] = np.sum(np.asarray(weighted), axis=0) * weights
    if not config.supervised and given.labels is None:
        rewards = implicit_rewards(config, scores, given.reference)
        margins = np.asarray(rewards[:, 0] - rewards[:, 1])
        per_pair["rewards/margins"] = margins
    ends = {}
    for name, values in per_pair.items():
        if len(values) < 2:
            continue
        half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
        ends[f"{name}_low"] = float(values.mean()) - half
        ends[f"{name}_high"] = float(values.mean()) + half
    return ends

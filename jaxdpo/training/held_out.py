"""Preference metrics of held-out pairs."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.data.packing.layout import PairSource
from jaxdpo.data.packing.plan import BatchShape, Packer
from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import implicit_rewards, loss_sums
from jaxdpo.scoring.scores import Completions
from jaxdpo.training.metrics import completion_sums, means, reward_sums


@dataclass(frozen=True)
class EvalData:
    """Pairs to score, packed.

    Attributes:
      source: The tokenised pairs.
      packer: Their packing.
      shape: A shape that holds every microbatch.
      reference: f32 `[N, 2]` reference log-probs, or None for no reference.
      weights: f32 `[N]` factors on the pairs' losses, or None.
      margins: f32 `[N]` target margins of reward, or None.
      labels: f32 `[N]` labels of answers, 1 if found good, 0 if not, or None.
    """

    source: PairSource
    packer: Packer
    shape: BatchShape
    reference: np.ndarray | None
    weights: np.ndarray | None = None
    margins: np.ndarray | None = None
    labels: np.ndarray | None = None


def preference_metrics(config: LossConfig, policy: Completions, data: EvalData) -> dict[str, float]:
    """Loss, rewards, accuracies, log-probs and the rest of held-out pairs.

    `rewards/length_correlation` is Pearson's, over pairs, of the reward margin with the chosen
    completion's excess in tokens over the rejected one's; over labelled answers, of the reward with
    the tokens.

    Args:
      config: The loss.
      policy: Scores of all pairs, f32 `[N, 2]`.
      data: The pairs.
    """
    scores: Completions = jax.tree.map(jnp.asarray, policy)
    reference = None if data.reference is None else jnp.asarray(data.reference)
    given = (data.weights, data.margins, data.labels)
    weights, margins, labels = jax.tree.map(jnp.asarray, given)
    is_pair = jnp.ones(len(policy.logps), bool)
    mean_chosen_tokens = scores.tokens[:, 0].mean()
    sums = loss_sums(
        config, scores, reference, is_pair, mean_chosen_tokens, margins, weights, labels
    )
    sums |= completion_sums(scores, reference, is_pair, labels)
    more: dict[str, float] = {}
    if not config.supervised:
        rewards = implicit_rewards(config, scores, reference)
        sums |= reward_sums(rewards, is_pair, labels)
        other = 1.0 if labels is None else 0.0
        longer = policy.tokens[:, 0] - other * policy.tokens[:, 1]
        margins = np.asarray(rewards[:, 0] - other * rewards[:, 1])
        if margins.std() > 0 and longer.std() > 0:
            more["rewards/length_correlation"] = float(np.corrcoef(margins, longer)[0, 1])
    return means({name: float(value) for name, value in sums.items()}) | more

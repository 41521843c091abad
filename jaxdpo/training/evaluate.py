"""Preference metrics of held-out pairs."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxdpo.data.packing import PairSource
from jaxdpo.data.plan import BatchShape, Packer
from jaxdpo.losses import sigmoid_loss
from jaxdpo.metrics import means, preference_sums


@dataclass(frozen=True)
class EvalData:
    """Pairs to score, packed.

    Attributes:
      source: The tokenised pairs.
      packer: Their packing.
      shape: A shape that holds every microbatch.
      reference: f32 `[N, 2]` reference log-probs.
    """

    source: PairSource
    packer: Packer
    shape: BatchShape
    reference: np.ndarray


def preference_metrics(
    policy_logps: np.ndarray, reference_logps: np.ndarray, beta: float
) -> dict[str, float]:
    """Loss, rewards, accuracies and log-probs of scored pairs, both f32 `[N, 2]`."""
    policy, reference = jnp.asarray(policy_logps), jnp.asarray(reference_logps)
    losses = sigmoid_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta=beta)
    sums = preference_sums(policy, reference, jnp.ones(len(policy), bool), beta)
    return means({name: float(value) for name, value in {"loss": losses.sum(), **sums}.items()})

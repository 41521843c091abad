"""The TEST pairs of a run, scored by a policy."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdpo.model.decoder import Params
from jaxdpo.runs.setup import Setup
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.scores import CompletionScores
from jaxdpo.training.held_out import metric_intervals, preference_metrics
from jaxdpo.training.metrics import Metrics


def held_out_metrics(
    setup: Setup,
    params: Params,
    lora: Params | None,
    stopped: Callable[[], bool] = lambda: False,
    score_step: Callable[..., Any] | None = None,
) -> Metrics | None:
    """Scores the TEST pairs and returns their metrics, with the intervals of the means.

    Args:
      setup: The run; it has TEST pairs.
      params: The policy's parameters.
      lora: Its adapters, or None.
      stopped: Asked after each microbatch whether to leave off.
      score_step: Scores a microbatch in place of the run's own.

    Returns:
      The metrics; None if it left off.
    """
    assert setup.test is not None
    step = score_step or setup.score_step
    scored: list[tuple[np.ndarray, CompletionScores]] = []
    for scores in score_pairs(step, params, lora, setup.test, setup.mesh):
        scored.append(scores)
        if stopped():
            return None
    # Pairs were packed in an order of their own; the columns are in the data's.
    order = np.argsort(np.concatenate([indices for indices, _ in scored]))
    policy: CompletionScores = jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[order], *(found for _, found in scored)
    )
    # Over all pairs at once, and not averaged over microbatches: some losses sort the pairs.
    metrics = preference_metrics(setup.config.loss, policy, setup.test.columns)
    return metrics | metric_intervals(setup.config.loss, policy, setup.test.columns)

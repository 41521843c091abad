"""The TEST pairs of a run, scored by a policy."""

from collections.abc import Callable

import jax
import numpy as np

from jaxdpo.model.decoder import Params
from jaxdpo.runs.setup import Setup
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.scores import CompletionScores
from jaxdpo.training.held_out import metric_intervals, preference_metrics
from jaxdpo.training.metrics import Metrics


def held_out_scores(
    setup: Setup,
    params: Params,
    lora: Params | None,
    stopped: Callable[[], bool] = lambda: False,
) -> CompletionScores | None:
    """Scores the TEST pairs.

    Args:
      setup: The run; it has TEST pairs.
      params: The policy's parameters.
      lora: Its adapters, or None.
      stopped: Asked after each microbatch whether to leave off.

    Returns:
      The scores, f32 `[N, 2]`, in the order of the data; None if it left off.
    """
    assert setup.test is not None
    scored: list[tuple[np.ndarray, CompletionScores]] = []
    for scores in score_pairs(setup.score_step, params, lora, setup.test, setup.mesh):
        scored.append(scores)
        if stopped():
            return None
    # Pairs were packed in an order of their own; the columns are in the data's.
    order = np.argsort(np.concatenate([indices for indices, _ in scored]))
    return jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[order], *(found for _, found in scored)
    )


def held_out_metrics(setup: Setup, scores: CompletionScores) -> Metrics:
    """Returns the metrics of the TEST pairs, with the intervals of the means.

    Args:
      setup: The run; it has TEST pairs.
      scores: From `held_out_scores`.
    """
    assert setup.test is not None
    # Over all pairs at once, and not averaged over microbatches: some losses sort the pairs.
    metrics = preference_metrics(setup.config.loss, scores, setup.test.columns)
    return metrics | metric_intervals(setup.config.loss, scores, setup.test.columns)

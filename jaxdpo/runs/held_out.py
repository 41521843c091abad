"""The TEST pairs of a run, scored by a policy."""

from collections.abc import Callable

import jax
import numpy as np

from jaxdpo.evaluation.agreement import share
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
    loss, columns = setup.config.loss, setup.test.columns
    metrics = preference_metrics(loss, scores, columns)
    metrics |= metric_intervals(loss, scores, columns)
    # Over labelled answers, accuracy is of good and bad ones apart, and no share of pairs.
    return metrics if columns.labels is not None else metrics | accuracy_interval(metrics)


def accuracy_interval(metrics: Metrics) -> Metrics:
    """Returns the ends of the 95% interval of the accuracy, if there is one.

    It is Wilson's, for a share: a mean ± standard errors would claim certainty where all pairs are
    told right, and go beyond 100% where nearly all are.

    Args:
      metrics: Metrics of held-out pairs.
    """
    name = "rewards/accuracies"
    if name not in metrics:
        return {}
    count = round(metrics["num_pairs"])
    likely = share(metrics[name] * count, count)
    return {f"{name}_low": likely.low, f"{name}_high": likely.high}

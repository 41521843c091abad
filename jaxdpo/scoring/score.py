"""Scores of packed pairs' completions under a model, which training and evaluation share."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.devices.sharding import replicated
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, forward, head_weight
from jaxdpo.scoring.logprobs import (
    LOGPS_ALONE,
    Head,
    Wanted,
    sum_by_completion,
    tail_discounts,
    token_scores,
)
from jaxdpo.scoring.scores import BatchScores, CompletionScores


def score_completions(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    ld_alpha: float | None = None,
    wanted: Wanted = LOGPS_ALONE,
    dropout_key: jax.Array | None = None,
) -> BatchScores:
    """Scores both completions of every pair of a microbatch, `[R, P, 2]`.

    Args:
      config: Architecture.
      params: Parameters.
      lora: Adapters, or None.
      batch: The microbatch.
      compute: How the model is computed.
      ld_alpha: Factor on the tail of the longer completion, in `logps`; None for 1.
      wanted: What is scored beside log-probs.
      dropout_key: Key of the adapters' dropout and of the embeddings' noise, in training.
    """
    # An offloaded reference lies in the host's memory: what is read once (embedding, norm, head)
    # comes to the device here, each layer when the scan over layers reaches it.
    params = {**compute.fetched({**params, "layers": ()}), "layers": params["layers"]}
    hidden, router_loss = forward(config, params, lora, batch, compute, dropout_key=dropout_key)
    scores = token_scores(
        hidden,
        head_weight(config, params),
        batch.score_index,
        batch.score_target,
        Head(config.logit_scale, config.logit_softcap),
        wanted,
    )

    def summed(values_RS: jax.Array) -> jax.Array:
        return sum_by_completion(
            values_RS, batch.score_pair, batch.score_branch, batch.pair_index.shape[-1]
        )

    tokens = summed(jnp.ones_like(scores.logps))
    logps = plain_logps = summed(scores.logps)
    if ld_alpha is not None:
        factors = tail_discounts(batch.score_pair, batch.score_branch, tokens, ld_alpha)
        logps = summed(scores.logps * factors)
    log_weights = None
    if scores.log_weights is not None:
        log_weights = summed(scores.log_weights) / jnp.maximum(tokens, 1.0)
    completions = CompletionScores(
        logps,
        plain_logps,
        tokens,
        log_weights,
        None if scores.entropy is None else summed(scores.entropy),
        None if scores.correct is None else summed(scores.correct),
    )
    return BatchScores(completions, router_loss)


@functools.lru_cache(maxsize=4)
def make_score_step(
    config: ModelConfig,
    compute: Compute,
    mesh: Mesh,
    ld_alpha: float | None = None,
    log_weights: bool = False,
) -> Callable[..., CompletionScores]:
    """Returns the jitted `(params, lora, batch) → CompletionScores [R, P, 2]`, on every device.

    It scores all that evaluation reports; so the reference and the evaluations share one compile,
    and so do the runs of a sweep.

    Args:
      config: Architecture.
      compute: How the model is computed.
      mesh: The mesh.
      ld_alpha: Factor on the tail of the longer completion, in `logps`; None for 1.
      log_weights: Whether the policy's own weights of pairs (WPO) are wanted.
    """

    def score_step(params: Params, lora: Params | None, batch: PackedBatch) -> CompletionScores:
        wanted = Wanted(log_weights, details=True)
        with compute.exact_products():
            scores = score_completions(
                config, params, lora, batch, compute, ld_alpha=ld_alpha, wanted=wanted
            )
        return scores.completions

    options = compute.compiler_options(mesh)
    return jax.jit(score_step, out_shardings=replicated(mesh), compiler_options=options)

"""Scores of packed pairs' completions under a model: the one function that training, evaluation
and the reference share, and the pass over a whole data set."""

import functools
from collections.abc import Callable, Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import PairSource, pack_batch
from jaxdpo.data.packing.plan import BatchShape, Microbatch, Packer, scoring_microbatches
from jaxdpo.devices.sharding import local_rows, put_rows, replicated
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, forward, head_weight
from jaxdpo.scoring.logprobs import (
    LOGPS_ALONE,
    Head,
    Wanted,
    sum_by_completion,
    tail_discounts,
    token_scores,
)
from jaxdpo.scoring.scores import Completions

# Batches made ahead by threads: enough to hide the packing, small beside the model.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


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
) -> Completions:
    """Scores both completions of every pair of a microbatch, `[R, P, 2]`.

    Args:
      config: Architecture.
      params: Parameters.
      lora: Adapters, or None.
      batch: The microbatch.
      compute: How the model is computed.
      ld_alpha: Factor on the tail of the longer completion, in `logps`; None for 1.
      wanted: What is scored beside log-probs.
      dropout_key: Of the adapters' dropout, in training.
    """
    return score_completions_and_router_loss(
        config,
        params,
        lora,
        batch,
        compute,
        ld_alpha=ld_alpha,
        wanted=wanted,
        dropout_key=dropout_key,
    )[0]


def score_completions_and_router_loss(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    ld_alpha: float | None = None,
    wanted: Wanted = LOGPS_ALONE,
    dropout_key: jax.Array | None = None,
) -> tuple[Completions, jax.Array | None]:
    """`score_completions`, and the experts' load-balancing loss; None without experts."""
    # The layers' parameters follow one by one.
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
    completions = Completions(
        logps,
        plain_logps,
        tokens,
        log_weights,
        None if scores.entropy is None else summed(scores.entropy),
        None if scores.correct is None else summed(scores.correct),
    )
    return completions, router_loss


def put_batch(batch: PackedBatch, rows: list[int], count: int, mesh: Mesh, row_axis: int):
    """Host arrays of this process's rows → global device arrays, cut by rows over the mesh."""
    return jax.tree.map(lambda leaf: put_rows(leaf, rows, count, mesh, row_axis), batch)


@functools.lru_cache(maxsize=4)
def make_score_step(
    config: ModelConfig,
    compute: Compute,
    mesh: Mesh,
    ld_alpha: float | None = None,
    log_weights: bool = False,
) -> Callable[..., Completions]:
    """The jitted `(params, lora, batch) → Completions [R, P, 2]`, whole on every device.

    It scores all that evaluation reports; so the reference and the evaluations share one compile,
    and so do the runs of a sweep.
    """

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def score_step(params: Params, lora: Params | None, batch: PackedBatch) -> Completions:
        wanted = Wanted(log_weights, details=True)
        return score_completions(
            config, params, lora, batch, compute, ld_alpha=ld_alpha, wanted=wanted
        )

    return score_step


def score_pairs(
    score_step: Callable[..., Completions],
    params: Params,
    lora: Params | None,
    source: PairSource,
    packer: Packer,
    shape: BatchShape,
    mesh: Mesh,
    first: int = 0,
) -> Iterator[tuple[np.ndarray, Completions]]:
    """Scores every pair of a data set once.

    Args:
      score_step: From `make_score_step`.
      params: Parameters.
      lora: Adapters, or None.
      source: The tokenised pairs.
      packer: Packing of these pairs.
      shape: A shape that holds every microbatch.
      mesh: The mesh.
      first: Microbatches to leave out, from the beginning.

    Yields:
      For each microbatch, the indices of its pairs, i32 `[n]`, and their scores, f32 `[n, 2]`.
    """
    rows = local_rows(mesh, shape.rows)
    microbatches = list(scoring_microbatches(packer))[first:]

    def build(microbatch: Microbatch) -> PackedBatch:
        return pack_batch(
            source, microbatch, shape, share_prefix=packer.config.share_prefix, rows=rows
        )

    if not microbatches:
        return
    batches = grain.MapDataset.source(microbatches).map(build).to_iter_dataset(READ_OPTIONS)
    # One microbatch is always under way on the device while the last one's result is read.
    pending: tuple[Microbatch, Completions] | None = None
    for microbatch, batch in zip(microbatches, batches, strict=True):
        result = score_step(params, lora, put_batch(batch, rows, shape.rows, mesh, row_axis=0))
        if pending is not None:
            yield _by_pair(*pending)
        pending = (microbatch, result)
    if pending is not None:
        yield _by_pair(*pending)


def _by_pair(microbatch: Microbatch, scores_RP2: Completions) -> tuple[np.ndarray, Completions]:
    indices = np.array([pair for row in microbatch for pair in row], np.int32)

    def of_pairs(leaf: jax.Array) -> np.ndarray:
        values = np.asarray(leaf)
        return np.concatenate([values[r, : len(row)] for r, row in enumerate(microbatch)])

    return indices, jax.tree.map(of_pairs, scores_RP2)

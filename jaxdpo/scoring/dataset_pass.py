"""The pass over a whole data set that scores every pair once."""

import itertools
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import READ_AHEAD, pack_batch
from jaxdpo.data.packing.plan import Microbatch, scoring_microbatches
from jaxdpo.devices.sharding import local_rows, put_rows
from jaxdpo.model.decoder import Params
from jaxdpo.scoring.planned_pairs import PlannedPairs
from jaxdpo.scoring.scores import CompletionScores


def score_pairs(
    score_step: Callable[..., CompletionScores],
    params: Params,
    lora: Params | None,
    pairs: PlannedPairs,
    mesh: Mesh,
    first: int = 0,
    count: int | None = None,
) -> Iterator[tuple[np.ndarray, CompletionScores]]:
    """Scores every pair of a data set once.

    Args:
      score_step: From `make_score_step`.
      params: Parameters.
      lora: Adapters, or None.
      pairs: The pairs, planned.
      mesh: The mesh.
      first: Microbatches to leave out, from the beginning.
      count: Microbatches to score; None for all that are left.

    Yields:
      For each microbatch, the indices of its pairs, i32 `[n]`, and their scores, f32 `[n, 2]`.
    """
    num_rows, share_prefix = pairs.shape.rows, pairs.packer.config.share_prefix
    # Every process packs the rows of its own devices and no others.
    rows = local_rows(mesh, num_rows)
    last = None if count is None else first + count
    microbatches = list(itertools.islice(scoring_microbatches(pairs.packer), first, last))

    def build(microbatch: Microbatch) -> PackedBatch:
        return pack_batch(
            pairs.source, microbatch, pairs.shape, share_prefix=share_prefix, rows=rows
        )

    if not microbatches:
        return
    batches = grain.MapDataset.source(microbatches).map(build).to_iter_dataset(READ_AHEAD)
    # One microbatch is always under way on the device while the last one's result is read.
    pending: tuple[Microbatch, CompletionScores] | None = None
    for microbatch, batch in zip(microbatches, batches, strict=True):
        result = score_step(params, lora, put_rows(batch, rows, num_rows, mesh, row_axis=0))
        if pending is not None:
            yield _by_pair(*pending)
        pending = (microbatch, result)
    if pending is not None:
        yield _by_pair(*pending)


def _by_pair(
    microbatch: Microbatch, scores_RP2: CompletionScores
) -> tuple[np.ndarray, CompletionScores]:
    indices = np.array([pair for row in microbatch for pair in row], np.int32)

    def of_pairs(leaf: jax.Array) -> np.ndarray:
        values = np.asarray(leaf)
        return np.concatenate([values[r, : len(row)] for r, row in enumerate(microbatch)])

    return indices, jax.tree.map(of_pairs, scores_RP2)

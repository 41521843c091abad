"""The pairs whose training is most likely to make their own chosen answers less likely."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.layout import PairSource
from jaxdpo.data.packing.plan import BatchConfig, Packer, choose_row_length, scoring_shape
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.devices.machine import local_machine
from jaxdpo.devices.sharding import MeshConfig, batch_shards, make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import on_mesh
from jaxdpo.model.attention.dense import LAYOUTS
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.runs.load import open_source
from jaxdpo.scoring.ches import ches_of_pairs, make_ches_step
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs

# Pairs that are scored of a larger data set, evenly spread over it: enough to find what kind of
# pair displaces, for the price of a few steps.
_MOST_SCORED = 2048


class DisplacingPair(NamedTuple):
    """A pair of a high CHES score.

    Attributes:
      source: The pair's `file:line`.
      ches: Its score by means of hidden states (`Ches.normalized`).
    """

    source: str
    ches: float


@dataclass(frozen=True)
class Displacing:
    """The pairs of the highest CHES scores.

    Attributes:
      pairs: Highest first.
      median: Median score of all pairs that were scored.
      scored: How many pairs were scored.
    """

    pairs: tuple[DisplacingPair, ...]
    median: float
    scored: int


@dataclass(frozen=True)
class _Part:
    """Some pairs of a source, by their indices there."""

    whole: PairSource
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> TokenizedPair:
        return self.whole[int(self.indices[index])]

    def source(self, index: int) -> str:
        return self.whole.source(int(self.indices[index]))


def most_displacing(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    compute: Compute,
    pairs: PlannedPairs,
    mesh: Mesh,
    count: int,
) -> Displacing:
    """Finds the pairs of the highest CHES scores, by one forward pass.

    Args:
      config: Architecture.
      params: Parameters.
      lora: Adapters, or None.
      compute: The way the model is computed.
      pairs: The pairs; those without a rejected answer are left out.
      mesh: The mesh.
      count: How many to name.
    """
    lengths_N3 = pairs.packer.lengths
    whole_N = np.flatnonzero(lengths_N3[:, 2] > 0)
    if len(whole_N) > _MOST_SCORED:
        # Evenly over the data, which may be sorted by source; the same pairs at every warning.
        whole_N = whole_N[np.linspace(0, len(whole_N) - 1, _MOST_SCORED).astype(np.int64)]
    if not len(whole_N):
        return Displacing((), 0.0, 0)
    part = _Part(pairs.source, whole_N)
    packer = replace(pairs.packer, lengths=lengths_N3[whole_N])
    # These pairs alone: the shape of training may be too small for rows of other company.
    shape = scoring_shape([packer], LAYOUTS[compute.attention])
    planned = PlannedPairs(part, packer, shape, PairColumns())
    step = make_ches_step(config, compute, mesh)
    # The score by means: sums grow with the square of the length, and would name the longest pairs.
    scores = ches_of_pairs(step, params, lora, planned, mesh).normalized
    highest = np.argsort(-scores, kind="stable")[:count]
    named = tuple(DisplacingPair(part.source(int(i)), float(scores[i])) for i in highest)
    return Displacing(named, float(np.median(scores)), len(scores))


def displacing_pairs_of_data(
    model: str, data: DataConfig, batch: BatchConfig, count: int
) -> Displacing:
    """Finds the TRAIN pairs of the highest CHES scores under a model, before any training.

    Args:
      model: Anything that `open_source` opens.
      data: The pairs.
      batch: Rows and packing.
      count: How many to name.

    Raises:
      UserError: If the model or the data cannot be read, or no pair has two answers.
    """
    mesh = make_mesh(MeshConfig())
    policy = on_mesh(open_source(model, data.chat_template), mesh)
    train = load_pairs(data, policy.chat).splits.get("TRAIN")
    if train is None or not len(train) or not train.lengths[:, 2].any():
        raise UserError(
            f"displacement: {data.name()} has no TRAIN pair with two answers; leave it out"
        )
    dtype = "float32" if local_machine().platform == "cpu" else "bfloat16"
    # Tiles run on every back end, and a forward pass alone has nothing to rematerialise.
    compute = Compute(jnp.dtype(dtype), "tiles", "none", policy.lora_config)
    with jax.set_mesh(mesh):
        rows = batch.rows_per_device * batch_shards()
        row_length = choose_row_length(train.lengths, batch, rows)
        packer = Packer(train.lengths, batch, rows, row_length)
        shape = scoring_shape([packer], LAYOUTS[compute.attention])
        planned = PlannedPairs(train, packer, shape, PairColumns())
        return most_displacing(
            policy.config, policy.params, policy.lora, compute, planned, mesh, count
        )


def named(pairs: Sequence[DisplacingPair]) -> str:
    """Names pairs with their scores, in one line.

    >>> named([DisplacingPair("pairs.jsonl:7", -0.5)])
    'pairs.jsonl:7 (-0.50)'
    """
    return ", ".join(f"{pair.source} ({pair.ches:.2f})" for pair in pairs)

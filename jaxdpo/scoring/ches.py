"""CHES: how likely training on a pair is to lower the probability of its own chosen answer.

Razin et al. 2024, "Unintentional Unalignment: Likelihood Displacement in Direct Preference
Optimization" (https://arxiv.org/abs/2410.08847), definition 2. Where the hidden states of the two
completions are alike, pushing the rejected one down pushes the chosen one down with it: such pairs
have the highest scores. It costs one forward pass over the data, before any training.

    step = make_ches_step(config, compute, mesh)
    found = ches_of_pairs(step, params, None, pairs, mesh)
    most_displacing = found.normalized.argsort()[::-1]
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.devices.sharding import replicated
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, forward
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.planned_pairs import PlannedPairs


class Ches(NamedTuple):
    """CHES scores of pairs, f32 `[R, P]` of a batch or `[N]` of a data set; 0 without a pair.

    Attributes:
      summed: ⟨Σ h⁺, Σ h⁻⟩ − ‖Σ h⁺‖², where h⁺ are the hidden states that predict the chosen
        completion's tokens, and h⁻ those that predict the rejected one's.
      normalized: The same of means instead of sums, which does not grow with the answers' lengths.
    """

    summed: Any
    normalized: Any


def ches(sums_RP2D: jax.Array, tokens_RP2: jax.Array) -> Ches:
    """Computes CHES scores from sums of hidden states (definition 2, and its variant by length).

    Args:
      sums_RP2D: f32, sums over the chosen and the rejected completion of each pair.
      tokens_RP2: f32, how many hidden states each sum has; 0 where there is no completion.
    """
    # Each token's mean instead of the sum; a missing completion's is 0 and not 0 / 0.
    means_RP2D = sums_RP2D / jnp.maximum(tokens_RP2, 1.0)[..., None]

    def score(vectors_RP2D: jax.Array) -> jax.Array:
        chosen_RPD, rejected_RPD = vectors_RP2D[:, :, 0], vectors_RP2D[:, :, 1]
        # ⟨c, r⟩ − ‖c‖² = ⟨c, r − c⟩. The difference first: where the completions are nearly alike,
        # which is what is looked for, two large numbers would cancel instead.
        return jnp.sum(chosen_RPD * (rejected_RPD - chosen_RPD), axis=-1)

    return Ches(score(sums_RP2D), score(means_RP2D))


def ches_of_batch(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    batch: PackedBatch,
    compute: Compute,
) -> Ches:
    """Computes the CHES scores of a microbatch's pairs, f32 `[R, P]`.

    Args:
      config: Architecture.
      params: Parameters.
      lora: Adapters, or None.
      batch: The microbatch.
      compute: The way the model is computed.
    """
    hidden_RTD = forward(config, params, lora, batch, compute).hidden_BTD
    # The states that predict scored tokens, in fp32: in bf16 a sum over an answer keeps 8 bits.
    index_RS1 = batch.score_index[..., None]
    hidden_RSD = jnp.take_along_axis(hidden_RTD, index_RS1, axis=1).astype(jnp.float32)
    # A slot for each (pair, completion); what is scored for no pair has slot −1, a row of zeros.
    slot_RS = (batch.score_pair - 1) * 2 + (batch.score_branch - 1)
    pairs = batch.pair_index.shape[-1]
    onehot_RSG = jax.nn.one_hot(jnp.where(batch.score_pair > 0, slot_RS, -1), pairs * 2)
    # Sums over the scored tokens s of each slot g, as a product: deterministic, unlike a scatter.
    sums_RGD = jnp.einsum("rsd,rsg->rgd", hidden_RSD, onehot_RSG, precision="highest")
    rows, width = hidden_RSD.shape[0], hidden_RSD.shape[-1]
    tokens_RP2 = onehot_RSG.sum(1).reshape(rows, pairs, 2)
    return ches(sums_RGD.reshape(rows, pairs, 2, width), tokens_RP2)


@functools.lru_cache(maxsize=4)
def make_ches_step(config: ModelConfig, compute: Compute, mesh: Mesh) -> Callable[..., Any]:
    """Makes the jitted `(params, lora, batch) → Ches [R, P]`, whole on every device.

    Args:
      config: Architecture.
      compute: The way the model is computed.
      mesh: The mesh.
    """

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def ches_step(params: Params, lora: Params | None, batch: PackedBatch) -> Ches:
        return ches_of_batch(config, params, lora, batch, compute)

    return ches_step


def ches_of_pairs(
    ches_step: Callable[..., Any],
    params: Params,
    lora: Params | None,
    pairs: PlannedPairs,
    mesh: Mesh,
) -> Ches:
    """Computes the CHES score of every pair of a data set, f32 `[N]` in the pairs' order.

    Args:
      ches_step: From `make_ches_step`.
      params: Parameters.
      lora: Adapters, or None.
      pairs: N pairs, each with both completions, planned.
      mesh: The mesh.
    """
    scores = Ches(*np.zeros((2, len(pairs.source)), np.float32))
    # The pass over a data set does not look into what a step returns for each pair.
    for indices, found in score_pairs(ches_step, params, lora, pairs, mesh):
        for scores_N, found_n in zip(scores, found, strict=True):
            scores_N[indices] = found_n
    return scores

"""Completion log-probs of packed pairs under a model: the one function that training, evaluation
and the reference share, and the pass over a whole data set."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.batch import PackedBatch
from jaxdpo.data.packing import PairSource, pack_batch
from jaxdpo.data.plan import BatchShape, Microbatch, Packer, scoring_microbatches
from jaxdpo.logprobs import Head, sum_by_completion, token_logps
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, head_weight, hidden_states_and_router_loss
from jaxdpo.sharding import local_rows, put_rows, replicated

# Batches made ahead by threads: enough to hide the packing, small beside the model.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def completion_logps(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Log-probs of both completions of every pair of a microbatch, f32 `[R, P, 2]`, in nats."""
    return completion_logps_and_router_loss(
        config, params, lora, batch, compute, dropout_key=dropout_key
    )[0]


def completion_logps_and_router_loss(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """`completion_logps`, and the experts' load-balancing loss; None without experts."""
    hidden, router_loss = hidden_states_and_router_loss(
        config, params, lora, batch, compute, dropout_key=dropout_key
    )
    logps = token_logps(
        hidden,
        head_weight(config, params),
        batch.score_index,
        batch.score_target,
        Head(config.logit_scale, config.logit_softcap),
    )
    pairs = batch.pair_index.shape[-1]
    sums = sum_by_completion(logps, batch.score_pair, batch.score_branch, pairs)
    return sums, router_loss


def put_batch(batch: PackedBatch, rows: list[int], count: int, mesh: Mesh, row_axis: int):
    """Host arrays of this process's rows → global device arrays, cut by rows over the mesh."""
    return jax.tree.map(lambda leaf: put_rows(leaf, rows, count, mesh, row_axis), batch)


def make_score_step(config: ModelConfig, compute: Compute, mesh: Mesh) -> Callable[..., Any]:
    """The jitted `(params, lora, batch) → f32 [R, P, 2]`, its result whole on every device."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def score_step(params: Params, lora: Params | None, batch: PackedBatch) -> jax.Array:
        return completion_logps(config, params, lora, batch, compute)

    return score_step


def score_pairs(
    score_step: Callable[..., Any],
    params: Params,
    lora: Params | None,
    source: PairSource,
    packer: Packer,
    shape: BatchShape,
    mesh: Mesh,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores every pair of a data set once.

    Args:
      score_step: From `make_score_step`.
      params: Parameters.
      lora: Adapters, or None.
      source: The tokenised pairs.
      packer: Packing of these pairs.
      shape: A shape that holds every microbatch.
      mesh: The mesh.

    Yields:
      For each microbatch, the indices of its pairs, i32 `[n]`, and their completion log-probs,
      f32 `[n, 2]`.
    """
    rows = local_rows(mesh, shape.rows)
    microbatches = list(scoring_microbatches(packer))

    def build(microbatch: Microbatch) -> PackedBatch:
        return pack_batch(
            source, microbatch, shape, share_prefix=packer.config.share_prefix, rows=rows
        )

    batches = grain.MapDataset.source(microbatches).map(build).to_iter_dataset(READ_OPTIONS)
    # One microbatch is always under way on the device while the last one's result is read.
    pending: tuple[Microbatch, jax.Array] | None = None
    for microbatch, batch in zip(microbatches, batches, strict=True):
        result = score_step(params, lora, put_batch(batch, rows, shape.rows, mesh, row_axis=0))
        if pending is not None:
            yield _by_pair(*pending)
        pending = (microbatch, result)
    if pending is not None:
        yield _by_pair(*pending)


def _by_pair(microbatch: Microbatch, logps_RP2: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    logps = np.asarray(logps_RP2)
    indices = np.array([pair for row in microbatch for pair in row], np.int32)
    return indices, np.concatenate([logps[r, : len(row)] for r, row in enumerate(microbatch)])


def weights_digest(params: Params) -> str:
    """A digest of the values of all parameters, the same on every mesh and number of processes.

    Every element's bits are mixed with its index and summed as integers, on the devices that hold
    them; integer sums do not depend on their order.
    """
    import hashlib

    digests = jax.device_get(_leaf_digests(params))
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {digest.tolist()}"
        for (path, leaf), digest in zip(paths, jax.tree.leaves(digests), strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@jax.jit
def _leaf_digests(params: Params) -> Any:
    def mix(bits: jax.Array) -> jax.Array:
        # The finaliser of MurmurHash3 (Appleby, public domain): every input bit moves every output.
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
        return bits ^ (bits >> 16)

    def digest(leaf: jax.Array) -> jax.Array:
        width = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        index = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, leaf.shape, axis
            )
        first = mix(bits ^ mix(index))
        second = mix(first + jnp.uint32(0x9E3779B9))
        return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])

    return jax.tree.map(digest, params)

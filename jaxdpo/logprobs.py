"""Log-probabilities of scored tokens from hidden states, never holding `[tokens, vocab]`.

The vocabulary head runs over chunks of tokens: full vocabulary a chunk, fp32 log-sum-exp, and the
backward pass forms each chunk's logits again instead of keeping them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.sharding import batch_shards, cut_rows

# Logits of one chunk on one device: 2**24 fp32 numbers, 64 MiB. Larger chunks make no faster
# matmuls; smaller ones do (64 tokens x 32k vocabulary cost 1.5 times as much).
_CHUNK_LOGITS = 2**24


class Head(NamedTuple):
    """What turns logits into the model's final logits: `softcap · tanh(scale · x / softcap)`.

    Attributes:
      scale: Multiplier of the logits.
      softcap: Bound of the logits (Gemma 2), or None.
    """

    scale: float = 1.0
    softcap: float | None = None


def token_logps(
    hidden_RTD: jax.Array,
    head_DV: jax.Array,
    score_index_RS: jax.Array,
    score_target_RS: jax.Array,
    head: Head,
    chunk: int | None = None,
) -> jax.Array:
    """Log-probability of each scored token.

    Args:
      hidden_RTD: Hidden states after the final norm, `[R, T, D]`.
      head_DV: Vocabulary head, `[D, V]`.
      score_index_RS: i32 `[R, S]`, the token whose hidden state predicts.
      score_target_RS: i32 `[R, S]`, the predicted token.
      head: Scale and soft cap of the logits.
      chunk: Tokens of each row scored at once; by default as many as 2**24 logits allow.

    Returns:
      f32 `[R, S]`, in nats.
    """
    hidden_RSD = jnp.take_along_axis(hidden_RTD, score_index_RS[..., None], axis=1)
    rows, scores, _ = hidden_RSD.shape
    # Each device's rows stand on an axis of their own, so that the head's gradient is summed over
    # devices once, after the last chunk, and not once a chunk.
    shards = batch_shards()
    shards = shards if rows % shards == 0 else 1
    if chunk is None:
        chunk = max(1, _CHUNK_LOGITS // (head_DV.shape[1] * (rows // shards)))
    chunk = min(chunk, scores)
    chunks = -(-scores // chunk)
    padding = chunks * chunk - scores

    def cut(array_RS: jax.Array) -> jax.Array:
        """`[R, S, ...]` → `[chunks, shards, R / shards, chunk, ...]`."""
        rest = array_RS.shape[2:]
        padded = jnp.pad(array_RS, ((0, 0), (0, padding), *((0, 0),) * len(rest)))
        return jnp.moveaxis(padded.reshape(shards, rows // shards, chunks, chunk, *rest), 2, 0)

    logps = _chunked_logps(
        head, cut(hidden_RSD), head_DV.astype(hidden_RTD.dtype), cut(score_target_RS)
    )
    assert isinstance(logps, jax.Array)
    return jnp.moveaxis(logps, 0, 2).reshape(rows, chunks * chunk)[:, :scores]


def sum_by_completion(
    logps_RS: jax.Array, score_pair_RS: jax.Array, score_branch_RS: jax.Array, pairs: int
) -> jax.Array:
    """Sums token log-probs by (pair, branch).

    Args:
      logps_RS: f32 `[R, S]`.
      score_pair_RS: i32 `[R, S]`, 1..P; 0 is not counted.
      score_branch_RS: i32 `[R, S]`, 1 chosen, 2 rejected.
      pairs: P.

    Returns:
      f32 `[R, P, 2]`: chosen and rejected completion log-probs; 0 where there is no pair.
    """
    slot_RS = (score_pair_RS - 1) * 2 + (score_branch_RS - 1)
    # A one-hot product: the same sum in the same order on every back end, unlike a scatter.
    onehot_RSG = jax.nn.one_hot(jnp.where(score_pair_RS > 0, slot_RS, -1), pairs * 2)
    sums_RG = jnp.einsum("rs,rsg->rg", logps_RS, onehot_RSG, precision=jax.lax.Precision.HIGHEST)
    return sums_RG.reshape(*logps_RS.shape[:1], pairs, 2)


def _final_logits(head: Head, hidden: jax.Array, head_DV: jax.Array) -> jax.Array:
    raw = jnp.einsum("grcd,dv->grcv", hidden, head_DV, preferred_element_type=jnp.float32)
    scaled = raw * head.scale if head.scale != 1.0 else raw
    return scaled if head.softcap is None else head.softcap * jnp.tanh(scaled / head.softcap)


def _target_mask(targets: jax.Array, logits: jax.Array) -> jax.Array:
    # A comparison and not a gather: it stays local where the vocabulary is cut over devices.
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3) == targets[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_logps(head: Head, hidden: jax.Array, head_DV: jax.Array, targets: jax.Array):
    """`[chunks, shards, rows, chunk, D]` hidden states → `[chunks, shards, rows, chunk]` logps."""
    return _chunked_logps_fwd(head, hidden, head_DV, targets)[0]


def _chunked_logps_fwd(head: Head, hidden: jax.Array, head_DV: jax.Array, targets: jax.Array):
    def one_chunk(_, inputs):
        hidden_chunk, targets_chunk = inputs
        logits = _final_logits(head, hidden_chunk, head_DV)
        lse = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.sum(jnp.where(_target_mask(targets_chunk, logits), logits, 0.0), axis=-1)
        return None, (target - lse, lse)

    _, (logps, lse) = jax.lax.scan(one_chunk, None, (hidden, targets))
    return logps, (hidden, head_DV, targets, lse)


def _chunked_logps_bwd(head: Head, residuals, cotangent):
    hidden, head_DV, targets, lse = residuals

    def one_chunk(gradient_GDV, inputs):
        hidden_chunk, targets_chunk, lse_chunk, cotangent_chunk = inputs
        logits = _final_logits(head, hidden_chunk, head_DV)
        onehot = _target_mask(targets_chunk, logits).astype(jnp.float32)
        gradient = cotangent_chunk[..., None] * (onehot - jnp.exp(logits - lse_chunk[..., None]))
        if head.softcap is not None:
            gradient *= 1.0 - jnp.square(logits / head.softcap)
        if head.scale != 1.0:
            gradient *= head.scale
        gradient = gradient.astype(hidden_chunk.dtype)
        gradient_hidden = jnp.einsum("grcv,dv->grcd", gradient, head_DV)
        gradient_GDV += jnp.einsum(
            "grcd,grcv->gdv", hidden_chunk, gradient, preferred_element_type=jnp.float32
        )
        return cut_rows(gradient_GDV), gradient_hidden

    zeros = cut_rows(jnp.zeros((hidden.shape[1], *head_DV.shape), jnp.float32))
    gradient_GDV, gradient_hidden = jax.lax.scan(
        one_chunk, zeros, (hidden, targets, lse, cotangent)
    )
    return gradient_hidden, gradient_GDV.sum(0).astype(head_DV.dtype), None


_chunked_logps.defvjp(_chunked_logps_fwd, _chunked_logps_bwd)

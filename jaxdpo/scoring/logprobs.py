"""Log-probabilities of scored tokens from hidden states, never holding `[tokens, vocab]`.

The vocabulary head runs over chunks of tokens: full vocabulary a chunk, fp32 log-sum-exp, and the
backward pass forms each chunk's logits again instead of keeping them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.devices.sharding import batch_shards, current_platform, gather_weight, shard_rows
from jaxdpo.devices.sizes import ceil_div

# Logits of one chunk on one device. A CPU multiplies no faster in chunks above 2**24 fp32 numbers,
# 64 MiB; in smaller ones it does worse (64 tokens × 32k vocabulary cost 1.5 times as much). The
# backward pass also reads and writes the head's whole gradient once a chunk, which an accelerator's
# memory takes longer for than the chunk's products do: hence few chunks there, of 512 MiB.
CHUNK_LOGITS = {"cpu": 2**24, "gpu": 2**27, "tpu": 2**27}


class Head(NamedTuple):
    """The last map from logits to final logits: `softcap · tanh(scale · x / softcap)`.

    Attributes:
      scale: Multiplier of the logits.
      softcap: Bound of the logits (Gemma 2), or None.
    """

    scale: float = 1.0
    softcap: float | None = None


class Wanted(NamedTuple):
    """Further scores read off the logits in the same pass; no gradients go through them.

    Attributes:
      log_weights: For losses weighted by the policy (WPO).
      details: Entropy and top-1 accuracy.
    """

    log_weights: bool = False
    details: bool = False


LOGPS_ALONE = Wanted()


class TokenScores(NamedTuple):
    """Scores of tokens, f32 `[R, S]`; None where not wanted.

    Attributes:
      logps: Log-probability of the token, in nats.
      log_weights: log p − log Σ p², the sum over the vocabulary.
      entropy: Of the prediction, in nats.
      correct: 1 where the token is the most likely one.
    """

    logps: jax.Array
    log_weights: jax.Array | None = None
    entropy: jax.Array | None = None
    correct: jax.Array | None = None


def token_scores(
    hidden_RTD: jax.Array,
    head_DV: jax.Array,
    score_index_RS: jax.Array,
    score_target_RS: jax.Array,
    head: Head,
    wanted: Wanted = LOGPS_ALONE,
    chunk: int | None = None,
) -> TokenScores:
    """Computes the log-probability of each scored token, and what else is wanted.

    Args:
      hidden_RTD: Hidden states after the final norm, `[R, T, D]`.
      head_DV: Vocabulary head, `[D, V]`.
      score_index_RS: i32 `[R, S]`, the token whose hidden state predicts.
      score_target_RS: i32 `[R, S]`, the predicted token.
      head: Scale and soft cap of the logits.
      wanted: What is scored beside log-probs.
      chunk: Tokens of each row scored at once; by default as many as `CHUNK_LOGITS` allow.
    """
    # Only the hidden states that predict a scored token go to the head: prompts, the larger part of
    # most data, cost nothing here.
    hidden_RSD = jnp.take_along_axis(hidden_RTD, score_index_RS[..., None], axis=1)
    rows, scores, _ = hidden_RSD.shape
    # Each device's rows stand on an axis of their own, so that the head's gradient is summed over
    # devices once, after the last chunk, and not once a chunk.
    shards = batch_shards()
    shards = shards if rows % shards == 0 else 1
    if chunk is None:
        logits = CHUNK_LOGITS[current_platform()]
        chunk = max(1, logits // (head_DV.shape[1] * (rows // shards)))
    chunk = min(chunk, scores)
    chunks = ceil_div(scores, chunk)
    padding = chunks * chunk - scores

    def cut(array_RS: jax.Array) -> jax.Array:
        """Lays `[R, S, ...]` out as `[chunks, shards, R / shards, chunk, ...]`."""
        rest = array_RS.shape[2:]
        padded = jnp.pad(array_RS, ((0, 0), (0, padding), *((0, 0),) * len(rest)))
        return jnp.moveaxis(padded.reshape(shards, rows // shards, chunks, chunk, *rest), 2, 0)

    chunked: Any = _chunked_scores(
        head, wanted, cut(hidden_RSD), head_DV.astype(hidden_RTD.dtype), cut(score_target_RS)
    )
    return jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 0, 2).reshape(rows, chunks * chunk)[:, :scores], chunked
    )


def tail_discounts(
    score_pair_RS: jax.Array, score_branch_RS: jax.Array, tokens_RP2: jax.Array, alpha: float
) -> jax.Array:
    """Factors on token log-probs: 1 as far as both completions go, alpha on the longer one's tail.

    Liu et al. 2024, "Length Desensitization in Direct Preference Optimization", equation 9.

    Args:
      score_pair_RS: i32 `[R, S]`, as in a batch, whose completions' tokens stand together and in
        the order of pairs, chosen before rejected.
      score_branch_RS: i32 `[R, S]`.
      tokens_RP2: f32 `[R, P, 2]`, tokens of each completion.
      alpha: Factor on the tail.

    Returns:
      f32 `[R, S]`.
    """
    # Completions are numbered as they stand in a row, G = 2P of them: pair 1's chosen is 0, its
    # rejected 1, pair 2's chosen 2, and so on; a slot is such a number.
    rows, pairs, _ = tokens_RP2.shape
    lengths_RG = tokens_RP2.reshape(rows, pairs * 2)
    # Scored tokens stand completion after completion without gaps. So a completion's first one
    # stands behind the tokens of all before it: the running sum of lengths, shifted by its own.
    start_RG = jnp.cumsum(lengths_RG, axis=1) - lengths_RG
    # Pair ids and branches count from 1; padding, with 0 in both, may take any slot.
    slot_RS = jnp.maximum((score_pair_RS - 1) * 2 + (score_branch_RS - 1), 0)
    # A token's number within its completion, from 0.
    number_RS = jnp.arange(slot_RS.shape[1])[None] - jnp.take_along_axis(start_RG, slot_RS, axis=1)
    # `slot // 2` is the pair; as far as the shorter completion goes, tokens count in full.
    shared_RS = jnp.take_along_axis(tokens_RP2.min(-1), slot_RS // 2, axis=1)
    return jnp.where(number_RS < shared_RS, 1.0, alpha)


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
    # Shards g, rows r, tokens of a chunk c: channels d are summed, in fp32 whatever the inputs are.
    raw = jnp.einsum("grcd,dv->grcv", hidden, head_DV, preferred_element_type=jnp.float32)
    scaled = raw * head.scale if head.scale != 1.0 else raw
    return scaled if head.softcap is None else head.softcap * jnp.tanh(scaled / head.softcap)


def _target_mask(targets: jax.Array, logits: jax.Array) -> jax.Array:
    # A comparison and not a gather: it stays local where the vocabulary is cut over devices.
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3) == targets[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_scores(
    head: Head, wanted: Wanted, hidden: jax.Array, head_DV: jax.Array, targets: jax.Array
):
    """Scores hidden states `[chunks, shards, rows, chunk, D]`: `[chunks, shards, rows, chunk]`."""
    return _chunked_scores_fwd(head, wanted, hidden, head_DV, targets)[0]


def _chunked_scores_fwd(
    head: Head, wanted: Wanted, hidden: jax.Array, head_DV: jax.Array, targets: jax.Array
):
    def one_chunk(_, inputs):
        hidden_chunk, targets_chunk = inputs
        logits = _final_logits(head, hidden_chunk, head_DV)
        # log p = logit − log Σ e^logit. The sum is kept for the backward pass: four bytes a token
        # in place of the vocabulary's logits.
        lse = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.sum(jnp.where(_target_mask(targets_chunk, logits), logits, 0.0), axis=-1)
        log_weights = entropy = correct = None
        if wanted.log_weights:
            # log p − log Σ p², where Σ p² = Σ e^(2 logit) / (Σ e^logit)².
            log_weights = target + lse - jax.nn.logsumexp(2 * logits, axis=-1)
        if wanted.details:
            # −Σ p log p = lse − Σ p · logit, since log p = logit − lse.
            entropy = lse - jnp.sum(jnp.exp(logits - lse[..., None]) * logits, axis=-1)
            correct = (target >= jnp.max(logits, axis=-1)).astype(jnp.float32)
        return None, (TokenScores(target - lse, log_weights, entropy, correct), lse)

    # Of a head that is cut along "fsdp" no more than its piece is kept for the backward pass.
    kept, head_DV = head_DV, gather_weight(head_DV, vocabulary=1)
    _, (scores, lse) = jax.lax.scan(one_chunk, None, (hidden, targets))
    return scores, (hidden, kept, targets, lse)


def _chunked_scores_bwd(head: Head, wanted: Wanted, residuals, cotangents: TokenScores):
    del wanted  # without gradients
    hidden, kept, targets, lse = residuals
    head_DV = gather_weight(kept, vocabulary=1)

    def one_chunk(gradient_GDV, inputs):
        hidden_chunk, targets_chunk, lse_chunk, cotangent_chunk = inputs
        logits = _final_logits(head, hidden_chunk, head_DV)
        onehot = _target_mask(targets_chunk, logits).astype(jnp.float32)
        # ∂ log p(target) / ∂ logit_v = [v is the target] − p_v, and then through cap and scale.
        gradient = cotangent_chunk[..., None] * (onehot - jnp.exp(logits - lse_chunk[..., None]))
        if head.softcap is not None:
            # (c tanh(x / c))′ = 1 − tanh², and tanh is the capped logit over c.
            gradient *= 1.0 - jnp.square(logits / head.softcap)
        if head.scale != 1.0:
            gradient *= head.scale
        gradient = gradient.astype(hidden_chunk.dtype)
        # Sums over the vocabulary: gradient · headᵀ.
        gradient_hidden = jnp.einsum("grcv,dv->grcd", gradient, head_DV)
        # Sums over a shard's rows and the chunk's tokens: hiddenᵀ · gradient. Each shard keeps a
        # sum of its own, so that devices add theirs up once, at the end.
        gradient_GDV += jnp.einsum(
            "grcd,grcv->gdv", hidden_chunk, gradient, preferred_element_type=jnp.float32
        )
        return shard_rows(gradient_GDV, vocabulary=True), gradient_hidden

    zeros = jnp.zeros((hidden.shape[1], *head_DV.shape), jnp.float32)
    gradient_GDV, gradient_hidden = jax.lax.scan(
        one_chunk, shard_rows(zeros, vocabulary=True), (hidden, targets, lse, cotangents.logps)
    )
    return gradient_hidden, gradient_GDV.sum(0).astype(head_DV.dtype), None


_chunked_scores.defvjp(_chunked_scores_fwd, _chunked_scores_bwd)

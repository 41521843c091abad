"""Log-probabilities of tokens, and the likeliest tokens beside them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Vocabularies up to this are looked through at once.
_SMALL = 4096


class TokenLogprobs(NamedTuple):
    """Log-probabilities of tokens and of the likeliest ones, before temperature and the like.

    The leading axes are those of the tokens: `[B, C]` of drawn ones, `[T]` of prompts. The arrays
    are JAX's on the device and NumPy's on the host.

    Attributes:
      of_token: f32, of the token itself.
      top_ids: i32 `[..., N]`, the likeliest tokens, the likeliest first.
      top: f32 `[..., N]`, theirs.
    """

    of_token: Any
    top_ids: Any
    top: Any


def logprobs_of(logits_NV: jax.Array, tokens_N: jax.Array, top: int) -> TokenLogprobs:
    """Computes log-probabilities of tokens and of the likeliest ones, for one axis of positions.

    Args:
      logits_NV: f32.
      tokens_N: i32, the tokens that were drawn or given.
      top: How many of the likeliest tokens are returned, if the vocabulary has as many.
    """
    logps_NV = jax.nn.log_softmax(logits_NV, axis=-1)
    # From the same array as the likeliest ones: whoever compares the two for equality, as harnesses
    # do to learn whether a token is the greedy one, must find no difference of rounding.
    of_token_N = jnp.take_along_axis(logps_NV, tokens_N[:, None], axis=-1)[:, 0]
    top_NK, ids_NK = likeliest(logps_NV, min(top, logps_NV.shape[-1]))
    return TokenLogprobs(of_token_N, ids_NK, top_NK)


def likeliest(logps_NV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Finds the largest values of each row and their indices, `[N, count]`, the largest first.

    It gives what `jax.lax.top_k` gives, which on CPU takes some 400 ms for 64 rows of 32,000.

    Args:
      logps_NV: f32.
      count: How many; at most V.
    """
    rows, vocabulary = logps_NV.shape
    if vocabulary <= _SMALL:
        top_NK, ids_NK = jax.lax.top_k(logps_NV, count)
        return top_NK, ids_NK.astype(jnp.int32)
    # Blocks of about √V. The K largest values lie in the K blocks with the largest maxima: a value
    # in any other block has K values in those that are at least as large.
    width = int(vocabulary**0.5)
    padded_NV = jnp.pad(logps_NV, ((0, 0), (0, -vocabulary % width)), constant_values=-jnp.inf)
    blocks_NGW = padded_NV.reshape(rows, -1, width)
    _, chosen_NK = jax.lax.top_k(blocks_NGW.max(axis=-1), count)
    # In the order of the vocabulary, so that of equal values the first one comes first.
    chosen_NK = jnp.sort(chosen_NK, axis=-1)
    values_NKW = jnp.take_along_axis(blocks_NGW, chosen_NK[:, :, None], axis=1)
    top_NK, places_NK = jax.lax.top_k(values_NKW.reshape(rows, -1), count)
    block_NK = jnp.take_along_axis(chosen_NK, places_NK // width, axis=1)
    return top_NK, (block_NK * width + places_NK % width).astype(jnp.int32)

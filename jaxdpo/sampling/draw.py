"""The next token, drawn from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class DrawConfig(NamedTuple):
    """Settings of one draw; hashable, so static under jit.

    Attributes:
      temperature: Divides the logits; 0 takes the likeliest token.
      top_k: Draw from this many likeliest tokens; None for all.
      top_p: Draw from the fewest likeliest tokens that have this probability together.
    """

    temperature: float
    top_k: int | None = None
    top_p: float = 1.0


def next_tokens(logits_BV: jax.Array, keys_B: jax.Array, draw: DrawConfig) -> jax.Array:
    """Draws a token for each row, i32 `[B]`, each row with its own key.

    First the `top_k` likeliest are kept, then, of their probability, the nucleus
    (https://arxiv.org/abs/1904.09751): a token is left out if the tokens likelier than it have
    `top_p` of it already. Tokens as likely as the last one kept are kept too.

    Args:
      logits_BV: f32.
      keys_B: A random key for each row.
      draw: Temperature, and how many of the likeliest tokens are kept; static under jit.
    """
    if draw.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Moved below zero before they are divided: divided first, logits overflow at low temperatures,
    # and ∞ − ∞ is no probability. So the largest stays 0, and what falls to −∞ has probability 0.
    below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    # Devices flush smaller numbers to 0, and 0 / 0 is none; the softmax is the same long before.
    scaled_BV = below_BV / max(draw.temperature, float(np.finfo(np.float32).tiny))
    if draw.top_k is not None and draw.top_k < scaled_BV.shape[-1]:
        least_B1 = jax.lax.top_k(scaled_BV, draw.top_k)[0][:, -1:]
        scaled_BV = jnp.where(scaled_BV >= least_B1, scaled_BV, -jnp.inf)
    p_BV = jax.nn.softmax(scaled_BV, axis=-1)
    if draw.top_p < 1:
        p_BV = jnp.where(p_BV >= _least_of_nucleus(p_BV, draw.top_p), p_BV, 0.0)
    uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
    return _draw(p_BV, uniform_B2)


def _least_of_nucleus(p_BV: jax.Array, top_p: float) -> jax.Array:
    """Finds the smallest x such that what is above x has less than `top_p`, f32 `[B, 1]`.

    It is found bit by bit, which costs thirty passes where sorting a vocabulary costs hundreds:
    floats from 0 to 1 are in the order of their bits.
    """

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        # The float in the middle of the bits, and not of the values: 30 halvings reach every float.
        middle_B1 = (low_B1 + high_B1) // 2
        x_B1 = jax.lax.bitcast_convert_type(middle_B1, jnp.float32)
        above_B1 = jnp.sum(jnp.where(p_BV > x_B1, p_BV, 0.0), axis=-1, keepdims=True)
        # True where the middle is high enough: the answer is then at or below it.
        enough_B1 = above_B1 < top_p
        return jnp.where(enough_B1, low_B1, middle_B1), jnp.where(enough_B1, middle_B1, high_B1)

    one = int(np.float32(1).view(np.int32))
    shape = (p_BV.shape[0], 1)
    bounds = (jnp.zeros(shape, jnp.int32), jnp.full(shape, one, jnp.int32))
    _, high_B1 = jax.lax.fori_loop(0, one.bit_length(), halve, bounds)
    return jax.lax.bitcast_convert_type(high_B1, jnp.float32)


def _draw(p_BV: jax.Array, uniform_B2: jax.Array) -> jax.Array:
    """Draws by weight, i32 `[B]`: a block of tokens with one number, one of it with the other.

    It takes two numbers a row, where `jax.random.categorical` takes one for each token.
    """
    rows, vocabulary = p_BV.shape
    # Blocks of √V tokens: the sums that are looked through are about 2 √V, and short sums of fp32
    # keep small probabilities that a running sum over the whole vocabulary would swallow.
    width = int(vocabulary**0.5) + 1
    padded_BV = jnp.pad(p_BV, ((0, 0), (0, -vocabulary % width)))
    p_BNW = padded_BV.reshape(rows, -1, width)
    block_B = _first_above(p_BNW.sum(-1), uniform_B2[:, 0])
    p_BW = jnp.take_along_axis(p_BNW, block_B[:, None, None], axis=1)[:, 0]
    return block_B * width + _first_above(p_BW, uniform_B2[:, 1])


def _first_above(weights_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Returns the first index whose weights up to it exceed that share of all, i32 `[B]`.

    It is never one of weight 0.
    """
    sums_BN = jnp.cumsum(weights_BN, axis=-1)
    all_B1 = sums_BN[:, -1:]
    below_B = jnp.sum(sums_BN <= uniform_B[:, None] * all_B1, axis=-1)
    # Rounded up, the share may be the whole: then it is the last index of any weight.
    return jnp.minimum(below_B, jnp.sum(sums_BN < all_B1, axis=-1)).astype(jnp.int32)

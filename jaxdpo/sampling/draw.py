"""The next token, drawn from logits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class RowDraws(NamedTuple):
    """Settings of each row's draws.

    They are arrays, so that one compiled program serves every setting and rows may differ.

    Attributes:
      temperature_B: f32, divides the logits; 0 takes the likeliest token.
      top_k_B: i32, draw from this many likeliest tokens; the vocabulary's size or more for all.
      top_p_B: f32, draw from the fewest likeliest tokens that have this probability together.
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array


def row_draws(
    temperatures: Sequence[float], top_ks: Sequence[int | None], top_ps: Sequence[float]
) -> RowDraws:
    """Makes arrays of rows' settings.

    Args:
      temperatures: Temperature of each row.
      top_ks: How many of the likeliest tokens each row draws from; None for all.
      top_ps: Probability of the nucleus that each row draws from.
    """
    # Devices flush smaller numbers to 0, which would be the likeliest token and no draw between
    # equally likely ones; the softmax is the same long before.
    least = float(np.finfo(np.float32).tiny)
    most = np.iinfo(np.int32).max
    return RowDraws(
        jnp.asarray([max(each, least) if each else 0.0 for each in temperatures], jnp.float32),
        jnp.asarray([most if each is None else min(each, most) for each in top_ks], jnp.int32),
        jnp.asarray(top_ps, jnp.float32),
    )


def next_tokens(logits_BV: jax.Array, keys_B: jax.Array, draws: RowDraws) -> jax.Array:
    """Draws a token for each row, i32 `[B]`, each row with its own key.

    First the `top_k` likeliest are kept, then, of their probability, the nucleus
    (https://arxiv.org/abs/1904.09751): a token is left out if the tokens likelier than it have
    `top_p` of it already. Tokens as likely as the last one kept are kept too.

    Args:
      logits_BV: f32.
      keys_B: A random key for each row.
      draws: Temperature, and how many of the likeliest tokens are kept, of each row.
    """
    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        sampled_B = _sampled(logits_BV, keys_B, draws)
        return jnp.where(draws.temperature_B > 0, sampled_B, likeliest_B)

    # Each step is done only if some row asks for it: a batch without any costs what it would cost
    # in a program that was compiled without the step.
    return jax.lax.cond(jnp.any(draws.temperature_B > 0), drawn, lambda: likeliest_B)


def _sampled(logits_BV: jax.Array, keys_B: jax.Array, draws: RowDraws) -> jax.Array:
    # Moved below zero before they are divided: divided first, logits overflow at low temperatures,
    # and ∞ − ∞ is no probability. So the largest stays 0, and what falls to −∞ has probability 0.
    below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    # Rows of temperature 0 are computed and not used; 1 keeps them finite.
    temperature_B = jnp.where(draws.temperature_B > 0, draws.temperature_B, 1.0)
    scaled_BV = below_BV / temperature_B[:, None]
    p_BV = jax.nn.softmax(_likeliest(scaled_BV, draws.top_k_B), axis=-1)
    p_BV = _nucleus(p_BV, draws.top_p_B)
    uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
    return _draw(p_BV, uniform_B2)


def _likeliest(scaled_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
    """Returns logits of at most 0 with −∞ in the place of all but each row's `top_k` largest.

    The k-th largest is found bit by bit: on CPU `jax.lax.top_k` takes twenty times as long.
    """
    limited_B = top_k_B < scaled_BV.shape[-1]

    def kept() -> jax.Array:
        # None is above 0, so the largest is the one that lies nearest to it.
        distance_BV = jnp.abs(scaled_BV)

        def enough(x_B1: jax.Array) -> jax.Array:
            return jnp.sum(distance_BV <= x_B1, axis=-1, keepdims=True) >= top_k_B[:, None]

        farthest_B1 = _least_float(enough, np.inf, top_k_B.shape[0])
        keep_BV = (distance_BV <= farthest_B1) | ~limited_B[:, None]
        return jnp.where(keep_BV, scaled_BV, -jnp.inf)

    return jax.lax.cond(jnp.any(limited_B), kept, lambda: scaled_BV)


def _nucleus(p_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Returns probabilities with 0 in the place of those outside of each row's nucleus."""

    def kept() -> jax.Array:
        def enough(x_B1: jax.Array) -> jax.Array:
            above_B1 = jnp.sum(jnp.where(p_BV > x_B1, p_BV, 0.0), axis=-1, keepdims=True)
            return above_B1 < top_p_B[:, None]

        # The smallest x such that what is above it has less than `top_p`.
        least_B1 = _least_float(enough, 1.0, top_p_B.shape[0])
        return jnp.where((p_BV >= least_B1) | (top_p_B[:, None] >= 1), p_BV, 0.0)

    return jax.lax.cond(jnp.any(top_p_B < 1), kept, lambda: p_BV)


def _least_float(enough: Callable[[jax.Array], jax.Array], most: float, rows: int) -> jax.Array:
    """Finds for each row the smallest float in [0, most] that is enough, f32 `[B, 1]`.

    It is found bit by bit, which costs thirty passes where sorting a vocabulary costs hundreds:
    floats that are not negative are in the order of their bits.

    Args:
      enough: Floats `[B, 1]` ↦ whether each is enough; what is above one that is, is enough too.
      most: The largest float that is looked at, taken to be enough.
      rows: B.
    """

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        # The float in the middle of the bits, and not of the values: 31 halvings reach every float.
        # The difference is halved, since the sum of the bits of two large floats overflows.
        middle_B1 = jnp.maximum(low_B1 + (high_B1 - low_B1) // 2, 0)
        enough_B1 = enough(jax.lax.bitcast_convert_type(middle_B1, jnp.float32))
        # True where the middle is high enough: the answer is then at or below it.
        return jnp.where(enough_B1, low_B1, middle_B1), jnp.where(enough_B1, middle_B1, high_B1)

    bits = int(np.float32(most).view(np.int32))
    # Minus one as the lower bound, which is never looked at: the answer may be 0 itself.
    bounds = (jnp.full((rows, 1), -1, jnp.int32), jnp.full((rows, 1), bits, jnp.int32))
    _, high_B1 = jax.lax.fori_loop(0, bits.bit_length() + 1, halve, bounds)
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

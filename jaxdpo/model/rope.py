"""Rotary position embedding: frequencies of each kind, and the rotation."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, Field


class LinearScaling(BaseModel, frozen=True, extra="forbid"):
    """Positions divided by a factor (https://arxiv.org/abs/2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0, description="How many times longer the context becomes.")

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        return frequencies / np.float32(self.factor)


class DynamicScaling(BaseModel, frozen=True, extra="forbid"):
    """A larger θ for sequences longer than the original context ("dynamic NTK").

    The frequencies are those of one length for all sequences of a run, so that what a sequence
    means does not depend on its neighbours: packing would change it otherwise.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: float = Field(gt=0, description="How fast θ grows with the length.")
    original_max_positions: int = Field(gt=0, description="Context length before scaling, tokens.")
    length: int = Field(gt=0, description="Longest sequence that is provided for, tokens.")

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        pairs = len(frequencies)
        times = max(self.length / self.original_max_positions, 1.0)
        growth = self.factor * times - (self.factor - 1)
        # θ · growth^(d / (d - 2)), of which pair i takes the power -2i / d.
        exponent = np.arange(pairs, dtype=np.float32) / np.float32(max(pairs - 1, 1))
        return (frequencies * np.float32(growth) ** -exponent).astype(np.float32)


class YarnScaling(BaseModel, frozen=True, extra="forbid"):
    """YaRN: slow pairs interpolated, fast ones kept, a ramp between (https://arxiv.org/abs/2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0, description="Divisor of the interpolated frequencies.")
    original_max_positions: int = Field(gt=0, description="Context length before scaling, tokens.")
    beta_fast: float = Field(
        default=32.0, gt=0, description="Turns in the original context from which on one is kept."
    )
    beta_slow: float = Field(
        default=1.0, gt=0, description="Turns in it below which one is interpolated."
    )
    truncate: bool = Field(
        default=True, description="Whether the ramp begins and ends at whole pairs."
    )
    magnitude: float = Field(gt=0, description="Factor on cosine and sine.")

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        pairs = len(frequencies)

        # Pair i turns once in 2π · θ^(2i / d) tokens: solved for i, in pairs and not in channels.
        def pair_with(turns: float) -> float:
            wavelengths = math.log(self.original_max_positions / (turns * 2 * math.pi))
            return pairs * wavelengths / math.log(theta)

        low, high = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        # A ramp of no width would divide by 0; as wide as the authors' code makes it.
        if low == high:
            high += 0.001
        slow = np.clip((np.arange(pairs, dtype=np.float32) - low) / (high - low), 0, 1)
        return (frequencies / self.factor * slow + frequencies * (1 - slow)).astype(np.float32)


class LongScaling(BaseModel, frozen=True, extra="forbid"):
    """LongRoPE: a divisor for each pair, of two lists (https://arxiv.org/abs/2402.13753).

    Which list is used is decided once for all sequences of a run, as for `DynamicScaling`.
    """

    kind: Literal["longrope"] = "longrope"
    short_factors: tuple[float, ...] = Field(description="Divisors up to the original context.")
    long_factors: tuple[float, ...] = Field(description="Divisors for longer sequences.")
    original_max_positions: int = Field(gt=0, description="Context length before scaling, tokens.")
    length: int = Field(gt=0, description="Longest sequence that is provided for, tokens.")
    magnitude: float = Field(gt=0, description="Factor on cosine and sine.")

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        long = self.length > self.original_max_positions
        factors = self.long_factors if long else self.short_factors
        return frequencies / np.asarray(factors, np.float32)


class Llama3Scaling(BaseModel, frozen=True, extra="forbid"):
    """Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0, description="Divisor of the low frequencies.")
    low_freq_factor: float = Field(
        gt=0, description="Original context over the wavelength from which on a frequency is low."
    )
    high_freq_factor: float = Field(
        gt=0, description="Original context over the wavelength below which a frequency is high."
    )
    original_max_positions: int = Field(gt=0, description="Context length before scaling, tokens.")

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        # How often each pair turns within the original context; those between the two bounds are
        # mixed linearly in that number, as the released weights were trained.
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / self.factor)).astype(np.float32)


Scaling = Annotated[
    LinearScaling | DynamicScaling | YarnScaling | LongScaling | Llama3Scaling,
    Field(discriminator="kind"),
]


class RopeConfig(BaseModel, frozen=True, extra="forbid"):
    """Frequencies of the rotary embedding (https://arxiv.org/abs/2104.09864)."""

    theta: float = Field(default=10000.0, gt=0, description="Base wavelength of the slowest pair.")
    partial: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of a head's channels that is rotated, the first.",
    )
    scaling: Scaling | None = Field(
        default=None, description="How the context was extended, if it was."
    )

    def rotated(self, head_dim: int) -> int:
        """Channels of a head that are rotated."""
        return int(head_dim * self.partial)


class QueryScaling(BaseModel, frozen=True, extra="forbid"):
    """Queries that grow with their position: 1 + beta · ln(1 + ⌊position / length⌋).

    The softmax over a long context would flatten otherwise (Llama 4, Ministral 3).
    """

    beta: float = Field(description="Growth with the logarithm of the position.")
    length: int = Field(gt=0, description="Positions below which queries stay as they are.")


def inverse_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Returns the radians by which each pair of a head's channels turns per position.

    Args:
      config: Base and scaling.
      head_dim: Channels of a head, of which an even number is rotated, r.

    Returns:
      f32 `[r / 2]`.
    """
    channels = config.rotated(head_dim)
    # In fp32 throughout, as the checkpoints were trained: at position 10⁵ an ulp is 0.01 radians.
    exponent = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    frequencies = np.float32(1.0) / np.float32(config.theta) ** exponent
    return config.scaling(frequencies, config.theta) if config.scaling else frequencies


def rotation(
    config: RopeConfig, head_dim: int, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of each channel pair's angle at every position, f32 `[B, T, r/2]`.

    Args:
      config: Frequencies, and their scaling.
      head_dim: Channels of a head, of which r are rotated.
      positions_BT: i32, counted from 0 in each sequence.
    """
    # r/2 frequencies, one for each pair of channels.
    frequencies_r = jnp.asarray(inverse_frequencies(config, head_dim))
    angles_BTr = positions_BT[:, :, None].astype(jnp.float32) * frequencies_r[None, None]
    # YaRN and LongRoPE make attention sharper in longer contexts: both q and k are longer by this.
    magnitude = 1.0
    if isinstance(config.scaling, YarnScaling | LongScaling):
        magnitude = config.scaling.magnitude
    return jnp.cos(angles_BTr) * magnitude, jnp.sin(angles_BTr) * magnitude


def rotate(
    x_BTHd: jax.Array,
    cos_sin: tuple[jax.Array, jax.Array] | None,
    interleaved: bool = False,
) -> jax.Array:
    """Turns pairs of each head's first r channels, in fp32; keeps the dtype.

    Args:
      x_BTHd: Queries or keys.
      cos_sin: What `rotation` returned; None for no rotation.
      interleaved: Whether the pairs are (2i, 2i + 1), and not (i, i + r/2).
    """
    if cos_sin is None:
        return x_BTHd
    # The same angle for all heads.
    cos_BT1r, sin_BT1r = (table[:, :, None, :] for table in cos_sin)
    half = cos_BT1r.shape[-1]
    # Channels beyond r stay as they are.
    rotated, rest = jnp.split(x_BTHd.astype(jnp.float32), (2 * half,), axis=-1)
    # The paper pairs neighbours. Most families pair channel i with i + r/2: so transformers lays
    # out the weights of q and k when it converts them.
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
    turned = (first * cos_BT1r - second * sin_BT1r, second * cos_BT1r + first * sin_BT1r)
    # Stacked and flattened, the two lie side by side again; concatenated, one after the other.
    joined = (
        jnp.stack(turned, axis=-1).reshape(rotated.shape)
        if interleaved
        else jnp.concatenate(turned, axis=-1)
    )
    return jnp.concatenate((joined, rest), axis=-1).astype(x_BTHd.dtype)


def query_scales(scaling: QueryScaling, positions_BT: jax.Array) -> jax.Array:
    """Computes the factor on the queries of each position, f32 `[B, T]`."""
    periods_BT = (positions_BT // scaling.length).astype(jnp.float32)
    return 1.0 + scaling.beta * jnp.log1p(periods_BT)

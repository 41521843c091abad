"""Rotary position embedding: frequencies of each kind, and the rotation."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class LinearScaling(BaseModel):
    """Positions divided by a factor (https://arxiv.org/abs/2306.15595)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0, description="How many times longer the context becomes.")

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / np.float32(self.factor)


class Llama3Scaling(BaseModel):
    """Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0, description="Divisor of the low frequencies.")
    low_freq_factor: float = Field(
        gt=0, description="Original context over the wavelength from which on a frequency is low."
    )
    high_freq_factor: float = Field(
        gt=0, description="Original context over the wavelength below which a frequency is high."
    )
    original_max_positions: int = Field(gt=0, description="Context length before scaling, tokens.")

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / self.factor)).astype(np.float32)


Scaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="kind")]


class RopeConfig(BaseModel):
    """Frequencies of the rotary embedding (https://arxiv.org/abs/2104.09864)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    theta: float = Field(default=10000.0, gt=0, description="Base wavelength of the slowest pair.")
    scaling: Scaling | None = Field(
        default=None, description="How the context was extended, if it was."
    )


def inverse_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Radians by which each pair of a head's channels turns per position.

    Args:
      config: Base and scaling.
      head_dim: Channels of a head, even.

    Returns:
      f32 `[head_dim / 2]`.
    """
    # In fp32 throughout, as the checkpoints were trained: at position 10⁵ an ulp is 0.01 radians.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(config.theta) ** exponent
    return config.scaling(frequencies) if config.scaling else frequencies


def rotation(
    config: RopeConfig, head_dim: int, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the angle of every channel pair at every position, f32 `[B, T, d/2]`."""
    frequencies_d = jnp.asarray(inverse_frequencies(config, head_dim))
    angles_BTd = positions_BT[:, :, None].astype(jnp.float32) * frequencies_d[None, None]
    return jnp.cos(angles_BTd), jnp.sin(angles_BTd)


def rotate(x_BTHd: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each head's channel pairs (i, i + d/2), in fp32, and returns `x`'s dtype."""
    cos_BT1d, sin_BT1d = (table[:, :, None, :] for table in cos_sin)
    first, second = jnp.split(x_BTHd.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos_BT1d - second * sin_BT1d, second * cos_BT1d + first * sin_BT1d)
    return jnp.concatenate(turned, axis=-1).astype(x_BTHd.dtype)

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxdpo.model.rope import (
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    inverse_frequencies,
    rotate,
    rotation,
)

LLAMA3: dict[str, Any] = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LinearScaling(factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Llama3Scaling(**LLAMA3, original_max_positions=512),
            {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 512},
        ),
    ],
)
def test_scaled_frequencies_equal_transformers(ours, theirs):
    hf = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 5e4, **theirs},
    )
    expected, _ = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](hf, "cpu")
    frequencies = inverse_frequencies(RopeConfig(theta=5e4, scaling=ours), 64)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
    unscaled = inverse_frequencies(RopeConfig(theta=5e4), 64)
    assert not np.allclose(frequencies, unscaled)


def test_frequencies_are_powers_of_theta():
    frequencies = inverse_frequencies(RopeConfig(theta=10000.0), 8)
    np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_rotation_turns_channel_i_with_channel_i_plus_half():
    x_BTHd = jnp.zeros((1, 1, 1, 4)).at[0, 0, 0, 1].set(2.0)
    cos_sin = rotation(RopeConfig(theta=100.0), 4, jnp.array([[5]]))
    angle = 5 * 0.1
    turned = rotate(x_BTHd, cos_sin)[0, 0, 0]
    np.testing.assert_allclose(turned, [0, 2 * np.cos(angle), 0, 2 * np.sin(angle)], atol=1e-6)


def test_far_positions_keep_their_angles():
    positions = np.array([[0, 1, 100_000]], np.int32)
    cos, sin = rotation(RopeConfig(theta=10000.0), 8, jnp.asarray(positions))
    frequencies = inverse_frequencies(RopeConfig(theta=10000.0), 8).astype(np.float64)
    angles = positions[..., None] * frequencies
    np.testing.assert_allclose(cos, np.cos(angles), atol=5e-3)
    np.testing.assert_allclose(sin, np.sin(angles), atol=5e-3)

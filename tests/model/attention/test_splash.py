"""Splash attention, interpreted on the CPU, against the mask that defines prefix sharing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.model.attention import per_layer
from jaxdpo.model.attention.dense import dense_attention
from jaxdpo.model.attention.splash import splash_attention
from jaxdpo.model.compute import Compute
from tests.model.attention.reference import random_qkv, run
from tests.tiny import hidden_states, mesh_of


@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "softcap"),
    [(4, 2, None, None), (4, 1, 4, None), (2, 2, 1, 5.0), (2, 1, 100, 2.0)],
)
def test_splash_is_the_sentence_in_values_and_gradients(packed, heads, kv_heads, window, softcap):
    qkv = random_qkv(packed, heads, kv_heads)
    dense = dense_attention(packed, 0.4, window, softcap)
    splash = splash_attention(packed, 0.4, window, softcap, interpret=True)
    for actual, expected in zip(run(splash, packed, qkv), run(dense, packed, qkv), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


def wide(packed, width):
    """The same rows, their attention rows made longer with padding."""
    layout = packed.gather
    short = layout.index.shape[-1]
    longer = [(0, 0), (0, 0), (0, width - short)]
    return packed._replace(
        gather=layout._replace(
            index=np.pad(layout.index, longer),
            segment=np.pad(layout.segment, longer),
            inverse=layout.inverse // short * width + layout.inverse % short,
        )
    )


@pytest.mark.parametrize("window", [None, 4])
def test_rows_of_several_blocks(packed, window):
    qkv, longer = random_qkv(packed, 2, 1), wide(packed, 600)
    dense = dense_attention(packed, 0.4, window)
    splash = splash_attention(longer, 0.4, window, None, interpret=True)
    for actual, expected in zip(run(splash, packed, qkv), run(dense, packed, qkv), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("mesh", [(2, 1, 2), (1, 2, 4)])
def test_a_model_with_windows_over_several_devices(config, params, packed, monkeypatch, mesh):
    # Two kv-heads: over two devices they are cut, over four they can't be.
    expected = hidden_states(config, params, None, packed, Compute(jnp.float32, "dense", "full"))
    compute = Compute(jnp.float32, "splash", "full")
    interpreted = functools.partial(splash_attention, interpret=True)
    monkeypatch.setattr(per_layer, "splash_attention", interpreted)
    with jax.set_mesh(mesh_of(*mesh)):
        run_model = jax.jit(lambda params: hidden_states(config, params, None, packed, compute))
        actual = run_model(params)
    real = packed.pair_ids > 0
    np.testing.assert_allclose(actual[real], expected[real], rtol=1e-4, atol=1e-5)

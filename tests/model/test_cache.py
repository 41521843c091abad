import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.batch import PackedBatch
from jaxdpo.model.cache import cached_hidden_states, empty_cache
from jaxdpo.model.decoder import Compute, hidden_states
from jaxdpo.model.lora import LoraConfig, init_lora

LORA = LoraConfig(rank=4)
COMPUTE = Compute(jnp.float32, attention="dense", remat="none", lora=LORA)
LENGTH, PROMPTS = 14, (5, 2, 7)
step = jax.jit(cached_hidden_states, static_argnums=(0, 7))


def full_forward(config, params, lora, tokens_BT) -> jax.Array:
    zeros = np.zeros_like(tokens_BT)
    positions = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    unused = (zeros,) * 6
    batch = PackedBatch(tokens_BT, positions, zeros + 1, *unused, tiles=None, gather=None)
    return jax.jit(hidden_states, static_argnums=(0, 4))(config, params, lora, batch, COMPUTE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_and_decode_equal_the_full_forward(config, params, side):
    """Prompts of different lengths, padded on either side, then one token at a time."""
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(lambda: init_lora(config, LORA, jax.random.key(0))),
    )
    tokens = rng.integers(0, 40, (len(PROMPTS), LENGTH)).astype(np.int32)
    expected = full_forward(config, params, lora, tokens)

    widest = max(PROMPTS)
    prompts = np.zeros((len(PROMPTS), widest), np.int32)
    positions = np.full((len(PROMPTS), widest), -1, np.int32)
    for row, length in enumerate(PROMPTS):
        where = slice(widest - length, None) if side == "left" else slice(0, length)
        prompts[row, where] = tokens[row, :length]
        positions[row, where] = np.arange(length)

    cache = empty_cache(config, len(PROMPTS), slots=LENGTH + 4, dtype=jnp.float32)
    hidden, cache = step(config, params, lora, prompts, positions, cache, 0, COMPUTE)
    assert np.isfinite(hidden).all()
    for row, length in enumerate(PROMPTS):
        np.testing.assert_allclose(
            hidden[row][positions[row] >= 0], expected[row, :length], rtol=1e-5, atol=1e-5
        )

    at = np.array(PROMPTS, np.int32)
    for slot in range(widest, LENGTH):
        token = np.take_along_axis(tokens, at[:, None], axis=1)
        hidden, cache = step(config, params, lora, token, at[:, None], cache, slot, COMPUTE)
        wanted = np.take_along_axis(np.asarray(expected), at[:, None, None], axis=1)
        np.testing.assert_allclose(hidden, wanted, rtol=1e-5, atol=1e-5)
        at += 1
    assert step._cache_size() <= 4


def test_an_empty_cache_has_no_positions(config):
    cache = empty_cache(config, batch=2, slots=5, dtype=jnp.bfloat16)
    assert cache.k_LBSKd.shape == cache.v_LBSKd.shape == (3, 2, 5, 2, 6)
    assert cache.k_LBSKd.dtype == jnp.bfloat16
    assert (cache.positions_BS == -1).all()

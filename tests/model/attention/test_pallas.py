"""The Pallas kernel, interpreted on the CPU, against the mask that defines prefix sharing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.model.attention.dense import dense_attention
from jaxdpo.model.attention.pallas import pallas_attention, pallas_refuses
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from tests.tiny import Pairs, mesh_of

# No multiple of a block; four of them, or five by five less what causality takes away.
ROW_LENGTH, BLOCKS = 250, 4
SHAPE = BatchShape(2, ROW_LENGTH, pairs=40, scores=ROW_LENGTH, tiles=BLOCKS * (BLOCKS + 1) // 2)


def random_rows(seed: int) -> PackedBatch:
    """Two rows of random pairs, some of a token or without a rejected answer; padding behind."""
    rng = np.random.default_rng(seed)
    rows, pairs = [], []
    for _ in range(2):
        longest = rng.choice([3, 30, 120])
        lengths = rng.integers(1, longest, (40, 3)) * [1, 1, rng.integers(2)]
        room = rng.integers(ROW_LENGTH // 2, ROW_LENGTH + 1)
        fitting = lengths[np.cumsum(lengths.sum(1)) <= room]
        rows.append(list(range(len(pairs), len(pairs) + len(fitting))))
        pairs += [TokenizedPair(*(np.ones(n, np.int32) for n in each)) for each in fitting]
    return pack_batch(Pairs(pairs), rows, SHAPE)


def both_passes(attention, heads: int, kv_heads: int, channels: int, dtype=jnp.float32):
    """A jitted function of a batch and a seed: outputs at real tokens, gradients of q, k and v."""
    numbers = (heads, kv_heads, kv_heads, heads)

    @jax.jit
    def run(batch: PackedBatch, seed: int):
        keys = jax.random.split(jax.random.key(seed), 4)
        real = (batch.pair_ids > 0)[:, :, None, None]
        q, k, v, cotangent = (
            (2 * jax.random.normal(key, (2, ROW_LENGTH, n, channels))).astype(dtype)
            for key, n in zip(keys, numbers, strict=True)
        )
        outputs, pull = jax.vjp(lambda *qkv: attention(batch)(*qkv)[0], q, k, v)
        return jnp.where(real, outputs, 0), *pull(jnp.where(real, cotangent, 0))

    return run


CASES = [
    (4, 2, 16, None, None),
    # Heads that are no power of two, in groups of three.
    (3, 1, 24, 100, 5.0),
]  # Query heads, kv-heads, channels, window, soft cap.


@pytest.mark.parametrize(("heads", "kv_heads", "channels", "window", "softcap"), CASES)
def test_values_and_gradients_are_the_dense_ones(heads, kv_heads, channels, window, softcap):
    kernel, dense = (
        both_passes(attention, heads, kv_heads, channels)
        for attention in (
            lambda batch: pallas_attention(batch, 0.3, window, softcap, interpret=True),
            lambda batch: dense_attention(batch, 0.3, window, softcap),
        )
    )
    for seed in range(8):
        rows = random_rows(seed)
        for one, other in zip(kernel(rows, seed), dense(rows, seed), strict=True):
            # fp32 sums over a row's keys, in another order.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "channels", "window", "softcap"),
    [(8, 2, 64, None, None), (6, 2, 128, 100, None), (4, 4, 80, None, 20.0), (2, 1, 256, 90, 5.0)],
)
def test_the_kernel_on_a_gpu(heads, kv_heads, channels, window, softcap):
    scale = channels**-0.5
    kernel, dense = (
        both_passes(attention, heads, kv_heads, channels, dtype)
        for attention, dtype in (
            (lambda batch: pallas_attention(batch, scale, window, softcap), jnp.bfloat16),
            (lambda batch: dense_attention(batch, scale, window, softcap), jnp.float32),
        )
    )
    for seed in range(20):
        rows = random_rows(seed)
        found = kernel(rows, seed)
        for one, other in zip(found, dense(rows, seed), strict=True):
            allowed = 0.03 * np.abs(other).max()
            np.testing.assert_allclose(one.astype(np.float32), other, rtol=0, atol=allowed)
        # No program shares what it writes with another: the same bits each time.
        for one, again in zip(found, kernel(rows, seed), strict=True):
            np.testing.assert_array_equal(one, again)


def test_bf16_over_devices_differs_by_its_own_rounding():
    # Two kv-heads over two devices; the exact values are those of one device.
    def attention(batch):
        return pallas_attention(batch, 0.2, None, None, interpret=True)

    kernel = both_passes(attention, 4, 2, 16, jnp.bfloat16)
    dense = both_passes(lambda batch: dense_attention(batch, 0.2, None), 4, 2, 16)
    rows = random_rows(3)
    expected = dense(rows, 0)
    with jax.set_mesh(mesh_of(1, 2, 2)):
        found = kernel(rows, 0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        # Eight bits of mantissa: a part in 256 of the largest, and a few roundings of it.
        allowed = 0.03 * np.abs(other).max()
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=0, atol=allowed)


@pytest.mark.parametrize(
    ("channels", "dtype", "capability", "reason"),
    [
        (80, "bfloat16", 8.0, None),
        (256, "bfloat16", None, None),
        (512, "bfloat16", None, "heads have 512 channels"),
        (64, "float32", 9.0, "model.compute_dtype is float32"),
        (64, "bfloat16", 7.5, "compute capability 7.5 has no bfloat16"),
    ],
)
def test_what_the_kernel_is_not_for_is_refused(channels, dtype, capability, reason):
    model = ModelConfig(
        vocab_size=9,
        hidden_size=8,
        num_layers=1,
        attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=channels),
        mlp=MLPConfig(intermediate_size=8),
    )
    said = pallas_refuses(model, dtype, capability)
    assert said is None if reason is None else reason in str(said)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.model.attention.dense import dense_attention
from jaxdpo.model.attention.tiles import tile_attention

# Query heads, kv-heads, window.
CASES = [(6, 2, None), (6, 2, 4), (4, 4, 1), (5, 1, 4), (5, 1, 100)]


def random_qkv(batch: PackedBatch, heads: int, kv_heads: int) -> list[jax.Array]:
    rows, length = batch.tokens.shape
    keys = jax.random.split(jax.random.key(heads), 3)
    sizes = (heads, kv_heads, kv_heads)
    return [
        2 * jax.random.normal(key, (rows, length, n, 6)) for key, n in zip(keys, sizes, strict=True)
    ]


def by_the_sentence(batch: PackedBatch, q, k, v, scale: float, window: int | None) -> np.ndarray:
    """One query, one key at a time, in float64: the sentence of `jaxdpo.data.packing.batch`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    rows, length, heads, _ = q.shape
    outputs = np.zeros_like(q)
    for b, i, h in np.ndindex(rows, length, heads):
        weights, values = [], []
        for j in range(i + 1):
            same_pair = batch.pair_ids[b, i] == batch.pair_ids[b, j]
            branch = batch.branches[b, j]
            shared = branch == 0 or branch == batch.branches[b, i]
            back = batch.positions[b, i] - batch.positions[b, j]
            if same_pair and shared and (window is None or back < window):
                kv_head = h * k.shape[2] // heads
                weights.append(np.exp(scale * q[b, i, h] @ k[b, j, kv_head]))
                values.append(v[b, j, kv_head])
        outputs[b, i, h] = np.average(values, axis=0, weights=weights)
    return outputs


@pytest.mark.parametrize(("heads", "kv_heads", "window"), CASES)
def test_dense_is_the_sentence(packed, heads, kv_heads, window):
    q, k, v = random_qkv(packed, heads, kv_heads)
    outputs, _ = dense_attention(packed, 0.4, window)(q, k, v)
    real = packed.pair_ids > 0
    expected = by_the_sentence(packed, q, k, v, 0.4, window)
    np.testing.assert_allclose(outputs[real], expected[real], rtol=1e-5, atol=1e-6)
    assert np.isfinite(outputs).all()


def test_scores_and_softmax_are_fp32_in_bf16(packed):
    # Scores near 300 are 2 apart in bf16: rounding them there would move weights by e².
    q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(packed, 4, 4))
    q = q * 8
    expected = by_the_sentence(packed, q, k, v, 1.0, None)
    real = packed.pair_ids > 0
    for attention in (dense_attention, tile_attention):
        outputs, _ = attention(packed, 1.0, None)(q, k, v)
        assert outputs.dtype == jnp.bfloat16
        np.testing.assert_allclose(outputs[real].astype(np.float32), expected[real], atol=0.06)

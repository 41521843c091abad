"""Attention by sequence lengths: its layout everywhere, the cuDNN kernel where there is a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.model.attention.cudnn import cudnn_attention, cudnn_refuses
from jaxdpo.model.attention.dense import dense_attention
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from tests.model.attention.reference import random_qkv, run
from tests.model.conftest import ROWS
from tests.tiny import mesh_of

CASES = [(4, 2, None), (4, 1, 4), (2, 2, 1), (2, 1, 100)]


@pytest.fixture(scope="module")
def apart(pairs):
    """The rows of `packed`, each sequence in an attention row of its own, and one row empty."""
    shape = BatchShape(3, 32, pairs=3, scores=24, sequences=6, sequence_width=64, unpacked=True)
    return pack_batch(pairs, ROWS, shape)


def test_each_attention_row_holds_one_sequence(apart):
    assert apart.gather.segment.max() == 1
    lengths = (apart.gather.segment > 0).sum(-1)
    assert sorted(lengths[0]) == [2, 2, 7, 8, 9, 10]
    assert sorted(lengths[1]) == [0, 0, 0, 0, 20, 22]
    assert not lengths[2].any()


@pytest.mark.parametrize(("heads", "kv_heads", "window"), CASES)
def test_lengths_and_windows_are_the_sentence(apart, heads, kv_heads, window):
    qkv = random_qkv(apart, heads, kv_heads)
    dense = dense_attention(apart, 0.4, window)
    by_length = cudnn_attention(apart, 0.4, window, None, implementation="xla")
    for actual, expected in zip(run(by_length, apart, qkv), run(dense, apart, qkv), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


def test_rows_are_cut_over_devices(apart):
    qkv = random_qkv(apart, 4, 2)
    expected = run(dense_attention(apart, 0.4, None), apart, qkv)
    with jax.set_mesh(mesh_of(1, 3, 2)):
        actual = run(cudnn_attention(apart, 0.4, None, None, "xla"), apart, qkv)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU with cuDNN")
@pytest.mark.parametrize(("heads", "kv_heads", "window"), CASES)
def test_the_kernel_on_a_gpu(apart, heads, kv_heads, window):
    qkv = [x.astype(jnp.bfloat16) for x in random_qkv(apart, heads, kv_heads, channels=64)]
    kernel = cudnn_attention(apart, 0.125, window, None)
    dense = dense_attention(apart, 0.125, window)
    exact = run(dense, apart, [x.astype(jnp.float32) for x in qkv])
    for actual, expected in zip(run(kernel, apart, qkv), exact, strict=True):
        assert np.isfinite(actual).all()
        # Two roundings to bf16 of numbers up to the largest.
        bound = 2**-7 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=bound, rtol=0)


@pytest.mark.parametrize(
    ("changes", "dtype", "capability", "reason"),
    [
        ({}, "bfloat16", 8.0, None),
        ({"head_dim": 256}, "bfloat16", 9.0, None),
        ({"head_dim": 256}, "bfloat16", 8.0, "heads have 256 channels"),
        ({"softcap": 50.0}, "bfloat16", None, "no soft cap"),
        ({"head_dim": 12}, "bfloat16", None, "heads have 12 channels"),
        ({"head_dim": 512}, "bfloat16", None, "heads have 512 channels"),
        ({}, "float32", 9.0, "model.compute_dtype is float32"),
    ],
)
def test_what_cudnn_cannot_do_exactly_is_refused(changes, dtype, capability, reason):
    attention = AttentionConfig(**{"num_heads": 2, "num_kv_heads": 1, "head_dim": 64, **changes})
    model = ModelConfig(
        vocab_size=9,
        hidden_size=8,
        num_layers=1,
        attention=attention,
        mlp=MLPConfig(intermediate_size=8),
    )
    said = cudnn_refuses(model, dtype, capability)
    assert said is None if reason is None else reason in str(said)

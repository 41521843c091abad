"""The chunked head against a float64 log-softmax over the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.devices.sharding import MeshConfig, make_mesh
from jaxdpo.scoring.logprobs import Head, sum_by_completion, token_scores

R, T, S, D, V = 4, 20, 13, 8, 51
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(R, T, D)).astype(np.float32)
WEIGHT = RNG.normal(size=(D, V)).astype(np.float32)
INDEX = RNG.integers(0, T, (R, S)).astype(np.int32)
TARGET = RNG.integers(0, V, (R, S)).astype(np.int32)
COTANGENT = RNG.normal(size=(R, S)).astype(np.float32)
HEADS = [Head(), Head(scale=0.25), Head(scale=2.0, softcap=3.0)]


def reference(hidden, weight, head):
    """float64 log-probs and gradients of their weighted sum, by the textbook formulas."""
    hidden, weight = hidden.astype(np.float64), weight.astype(np.float64)
    chosen = np.take_along_axis(hidden, INDEX[..., None], 1)
    scaled = chosen @ weight * head.scale
    logits = scaled if head.softcap is None else head.softcap * np.tanh(scaled / head.softcap)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    slope = COTANGENT[..., None] * (np.eye(V)[TARGET] - np.exp(logps))
    if head.softcap is not None:
        slope *= 1 - np.tanh(scaled / head.softcap) ** 2
    slope *= head.scale
    gradient_hidden = np.zeros_like(hidden)
    for r in range(R):
        np.add.at(gradient_hidden[r], INDEX[r], slope[r] @ weight.T)
    gradient_weight = np.einsum("rsd,rsv->dv", chosen, slope)
    picked = np.take_along_axis(logps, TARGET[..., None], -1)[..., 0]
    return picked, gradient_hidden, gradient_weight


@pytest.mark.parametrize("chunk", [None, 1, 5, 13])
@pytest.mark.parametrize("head", HEADS)
def test_values_and_gradients(head, chunk):
    logps, gradient_hidden, gradient_weight = reference(HIDDEN, WEIGHT, head)

    def total(hidden, weight):
        values = token_scores(hidden, weight, INDEX, TARGET, head, chunk=chunk).logps
        return jnp.sum(values * COTANGENT), values

    gradients, values = jax.grad(total, (0, 1), has_aux=True)(HIDDEN, WEIGHT)
    np.testing.assert_allclose(values, logps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[0], gradient_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], gradient_weight, rtol=1e-4, atol=1e-5)


def test_same_on_eight_devices():
    head = HEADS[2]
    logps, gradient_hidden, gradient_weight = reference(HIDDEN, WEIGHT, head)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):

        @jax.jit
        def gradients(hidden, weight):
            def total(hidden, weight):
                scored = (jnp.asarray(INDEX), jnp.asarray(TARGET))
                values = token_scores(hidden, weight, *scored, head, chunk=5).logps
                return jnp.sum(values * COTANGENT), values

            return jax.grad(total, (0, 1), has_aux=True)(hidden, weight)

        (by_hidden, by_weight), values = gradients(HIDDEN, WEIGHT)
    np.testing.assert_allclose(values, logps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_hidden, gradient_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_weight, gradient_weight, rtol=1e-4, atol=1e-5)


def test_temporary_memory_does_not_grow_with_tokens_times_vocabulary():
    def temporaries(tokens: int, vocabulary: int) -> int:
        def total(hidden, weight, index, target):
            return token_scores(hidden, weight, index, target, Head(), chunk=64).logps.sum()

        shapes = (
            jax.ShapeDtypeStruct((1, tokens, 16), jnp.float32),
            jax.ShapeDtypeStruct((16, vocabulary), jnp.float32),
            jax.ShapeDtypeStruct((1, tokens), jnp.int32),
            jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        )
        compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile()
        measured = compiled.memory_analysis()
        assert measured is not None
        return measured.temp_size_in_bytes

    vocabulary = 8192
    small, large = temporaries(512, vocabulary), temporaries(4096, vocabulary)
    # 3,584 more tokens would hold 112 MiB more logits; what grows is hidden states and log-probs.
    assert large - small < 4 * 2**20
    assert large < 4096 * vocabulary * 4 / 8


def test_sums_by_pair_and_branch_by_hand():
    logps = jnp.array([[-1.0, -2.0, -4.0, -8.0, -16.0, -32.0]])
    pairs = jnp.array([[1, 1, 1, 2, 2, 0]])
    branches = jnp.array([[1, 1, 2, 1, 2, 0]])
    sums = sum_by_completion(logps, pairs, branches, 3)
    np.testing.assert_array_equal(sums, [[[-3, -4], [-8, -16], [0, 0]]])

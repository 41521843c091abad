"""The decoder's parts, each against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig, NormConfig
from jaxdpo.model.layers import MLP, Attention, Block, Decoder, Linear, Norm

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8)).astype(np.float32)


def model(**changes) -> ModelConfig:
    fields = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_layers": 2,
        "attention": AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=4),
        "mlp": MLPConfig(intermediate_size=12),
    }
    return ModelConfig(**(fields | changes))


def filled(module):
    """The module with random parameters in place of its initial ones, norms and biases too."""
    graph, state = nnx.split(module)
    values = jax.tree.map(
        lambda leaf: jnp.asarray(RNG.standard_normal(leaf.shape), jnp.float32), state
    )
    return nnx.merge(graph, values)


@pytest.mark.parametrize("kind", ["rms", "rms-fp32", "rms-plus-one", "layer"])
def test_norms_are_their_formulas(kind):
    norm = filled(Norm(NormConfig(kind=kind, eps=1e-5), 8))
    x, scale = X.astype(np.float64), np.asarray(norm.scale[...], np.float64)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
    expected = normed * (scale + 1 if kind == "rms-plus-one" else scale)
    if norm.bias is not None:
        expected = expected + np.asarray(norm.bias[...], np.float64)
    assert (norm.bias is not None) == (kind == "layer")
    np.testing.assert_allclose(norm(X), expected, rtol=1e-5, atol=1e-6)


def test_norms_round_before_or_after_they_scale():
    """The two orders differ in bf16, and each family's is the one it was trained in."""
    x, scale = jnp.asarray(X, jnp.bfloat16), jnp.full(8, 1.01)
    exact = {}
    for kind in ("rms", "rms-fp32"):
        norm = Norm(NormConfig(kind=kind), 8)
        norm.scale[...] = scale
        exact[kind] = np.asarray(norm(x), np.float64)
    normed = np.asarray(x, np.float64)
    normed /= np.sqrt(np.square(normed).mean(-1, keepdims=True) + 1e-6)
    rounded = np.asarray(jnp.asarray(normed, jnp.bfloat16), np.float64)
    bf16_scale = float(jnp.bfloat16(1.01))
    for kind, expected in (("rms", rounded * bf16_scale), ("rms-fp32", normed * 1.01)):
        once_rounded = np.asarray(jnp.asarray(expected, jnp.bfloat16), np.float64)
        np.testing.assert_array_equal(exact[kind], once_rounded)
    assert (exact["rms"] != exact["rms-fp32"]).any()


def test_a_linear_map_adds_its_bias_and_its_adapter():
    linear = filled(Linear(8, 5, bias=True, rngs=nnx.Rngs(0)))
    assert linear.bias is not None
    kernel, bias = (np.asarray(leaf[...], np.float64) for leaf in (linear.kernel, linear.bias))
    adapted = linear(jnp.asarray(X), lambda x, *_: 2 * x[..., :5])
    expected = X @ kernel + bias + 2 * X[..., :5]
    np.testing.assert_allclose(adapted, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_an_mlp_with_and_without_a_gate(gated):
    mlp = filled(MLP(model(mlp=MLPConfig(intermediate_size=12, gated=gated)), nnx.Rngs(0)))
    assert (mlp.gate is not None) == gated

    def silu(x):
        return x / (1 + np.exp(-x))

    up = X @ np.asarray(mlp.up.kernel[...], np.float64)
    if mlp.gate is None:
        middle = silu(up)
    else:
        middle = silu(X @ np.asarray(mlp.gate.kernel[...], np.float64)) * up
    expected = middle @ np.asarray(mlp.down.kernel[...], np.float64)
    np.testing.assert_allclose(mlp(jnp.asarray(X), {}), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("qk_norm", ["head", "flat", None])
def test_queries_and_keys_are_normed_before_or_after_heads_are_split(qk_norm):
    config = model(
        attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=4, qk_norm=qk_norm)
    )
    attention = filled(Attention(config, nnx.Rngs(0)))
    seen = {}

    def attend(q_BTHd, k_BTKd, v_BTKd):
        seen.update(q=q_BTHd, k=k_BTKd, v=v_BTKd)
        return q_BTHd, "collected"

    _, collected = attention(jnp.asarray(X), None, attend, {})
    assert collected == "collected"
    norms = {"q": attention.q_norm, "k": attention.k_norm, "v": None}
    for name, heads in (("q", 2), ("k", 1), ("v", 1)):
        y = X @ np.asarray(getattr(attention, name).kernel[...], np.float64)
        norm = norms[name]
        shape = (2, 3, heads, 4) if qk_norm == "head" else (2, 3, heads * 4)
        if norm is not None:
            y = y.reshape(shape)
            y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)
            y = y * np.asarray(norm.scale[...], np.float64)
        expected = y.reshape(2, 3, heads, 4)
        np.testing.assert_allclose(seen[name], expected, rtol=1e-4, atol=1e-4)
    assert (norms["q"] is None) == (qk_norm is None)


def test_a_block_has_the_norms_of_its_family():
    for before, after in ((True, False), (False, True), (True, True)):
        block = Block(model(norm=NormConfig(before=before, after=after)), nnx.Rngs(0))
        assert (block.attention_norm is not None, block.mlp_norm is not None) == (before,) * 2
        post = (block.attention_post_norm is not None, block.mlp_post_norm is not None)
        assert post == (after,) * 2


def test_a_decoder_has_a_head_and_positions_where_its_family_has():
    for tied, learned in ((True, None), (False, 16)):
        config = model(tied_head=tied, learned_positions=learned)
        decoder = nnx.eval_shape(lambda config=config: Decoder(config, nnx.Rngs(0)))
        assert (decoder.head is None) == tied
        assert (decoder.positions is None) == (learned is None)

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.errors import UserError
from jaxdpo.model.compute import Compute
from jaxdpo.model.lora import LoraConfig, init_lora, layer_adapters, merge_lora
from tests.tiny import hidden_states

LORA = LoraConfig(rank=4, alpha=6.0)
COMPUTE = Compute(jnp.float32, attention="dense", remat="none", lora=LORA)
run = jax.jit(hidden_states, static_argnums=(0, 4))


@pytest.fixture(scope="module")
def trained(config):
    """Adapters on every linear map, as if trained: `b` no longer zero."""
    rng = np.random.default_rng(6)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32)),
        jax.eval_shape(lambda: init_lora(config, LORA, jax.random.key(0))),
    )


def test_fresh_adapters_leave_the_model_as_it_is(config, params, packed):
    fresh = jax.jit(init_lora, static_argnums=(0, 1))(config, LORA, jax.random.key(5))
    base = run(config, params, None, packed, COMPUTE)
    np.testing.assert_array_equal(run(config, params, fresh, packed, COMPUTE), base)


def test_shapes_and_initialisation(config):
    lora = init_lora(config, LoraConfig(rank=8, targets=("q", "down")), jax.random.key(0))
    assert jax.tree.map(jnp.shape, lora) == {
        "layers": {
            "attention": {"q": {"a": (3, 24, 8), "b": (3, 8, 36)}},
            "mlp": {"down": {"a": (3, 32, 8), "b": (3, 8, 24)}},
        }
    }
    a = np.asarray(lora["layers"]["mlp"]["down"]["a"])
    bound = 32**-0.5
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert a.dtype == np.float32
    assert not np.array_equal(a[0], a[1])
    assert not lora["layers"]["attention"]["q"]["b"].any()


def test_all_linear_means_the_layers_seven_maps(config):
    lora = jax.eval_shape(lambda: init_lora(config, LoraConfig(), jax.random.key(0)))
    assert {part: set(maps) for part, maps in lora["layers"].items()} == {
        "attention": {"q", "k", "v", "o"},
        "mlp": {"gate", "up", "down"},
    }


def test_adapters_equal_merged_weights(config, params, packed, trained):
    merged = merge_lora(params, trained, LORA.scale)
    kernel, pair = params["layers"]["mlp"]["up"]["kernel"], trained["layers"]["mlp"]["up"]
    expected = np.asarray(kernel, np.float64) + 1.5 * np.einsum(
        "lir,lro->lio", np.asarray(pair["a"], np.float64), np.asarray(pair["b"], np.float64)
    )
    np.testing.assert_allclose(
        merged["layers"]["mlp"]["up"]["kernel"], expected, rtol=1e-5, atol=1e-7
    )
    adapted = run(config, params, trained, packed, COMPUTE)
    np.testing.assert_allclose(
        adapted, run(config, merged, None, packed, COMPUTE), rtol=1e-4, atol=1e-4
    )
    assert not np.allclose(adapted, run(config, params, None, packed, COMPUTE), atol=0.1)


def test_merging_keeps_dtype_and_leaves_its_input_alone(params, trained):
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    before = rounded["layers"]["mlp"]["up"]["kernel"]
    merged = merge_lora(rounded, trained, 1.0)
    assert jax.tree.structure(merged) == jax.tree.structure(rounded)
    assert merged["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert rounded["layers"]["mlp"]["up"]["kernel"] is before


def test_dropout_only_with_a_key(config, params, packed, trained):
    dropping = dataclasses.replace(COMPUTE, lora=LORA.model_copy(update={"dropout": 0.5}))
    exact = run(config, params, trained, packed, COMPUTE)
    np.testing.assert_array_equal(run(config, params, trained, packed, dropping), exact)

    def dropped(seed):
        key = jax.random.key(seed)
        return run(config, params, trained, packed, dropping, dropout_key=key)

    assert not np.allclose(dropped(0), exact)
    assert not np.allclose(dropped(0), dropped(1))
    np.testing.assert_array_equal(dropped(0), dropped(0))


def test_dropout_keeps_the_expected_term():
    # One linear map by itself: the mean over many keys is the term without dropout.
    pair = {"q": {"a": jnp.full((8, 2), 0.5), "b": jnp.full((2, 4), 0.25)}}
    dropping = LoraConfig(rank=2, alpha=2.0, dropout=0.25)
    x = jnp.arange(8.0)[None]
    keys = jax.random.split(jax.random.key(0), 4000)
    base = jnp.zeros((8, 4))
    terms = jax.vmap(lambda key: layer_adapters(pair, dropping, key)["q"](x, x @ base, base))(keys)
    np.testing.assert_allclose(terms.mean(0), np.full((1, 4), 28 * 0.5 * 0.5), rtol=0.02)
    all_kept = np.isclose(terms[:, 0, 0], 28 * 0.5 * 0.5 / 0.75)
    assert all_kept.mean() == pytest.approx(0.75**7, abs=0.03)  # The eighth input is zero.


def test_unknown_target_is_refused(config):
    with pytest.raises(UserError, match=r"'q_proj' is no linear map.*down, gate, k, o, q, up, v"):
        init_lora(config, LoraConfig(targets=("q_proj",)), jax.random.key(0))
    with pytest.raises(UserError, match="did you mean 'gate'"):
        init_lora(config, LoraConfig(targets=("gates",)), jax.random.key(0))

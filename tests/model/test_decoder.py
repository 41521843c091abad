import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import BaseModel

from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.devices.sharding import MeshConfig, make_mesh, shardings_for
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import (
    AttentionConfig,
    ExpertsConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
)
from jaxdpo.model.decoder import abstract_params, head_weight, init_params, logits
from jaxdpo.model.rope import LinearScaling, QueryScaling, RopeConfig
from tests.tiny import Pairs, hidden_states, temporary_bytes

DENSE = Compute(jnp.float32, attention="dense", remat="none")
run = jax.jit(hidden_states, static_argnums=(0, 4))


@jax.jit(static_argnums=0)
def token_logps(config, params, hidden_RTD, batch):
    """Log-probs of the scored tokens from whole logits, f32 `[R, S]`; 0 where nothing is scored."""
    logps_RTV = jax.nn.log_softmax(logits(config, params, hidden_RTD))
    rows = jnp.arange(logps_RTV.shape[0])[:, None]
    logps_RS = logps_RTV[rows, batch.score_index, batch.score_target]
    return jnp.where(batch.score_pair > 0, logps_RS, 0.0)


def test_names_and_shapes_of_parameters(config):
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(abstract_params(config, jnp.float32))
    }
    assert shapes == {
        "embed/weight": (40, 24),
        "layers/attention_norm/scale": (3, 24),
        "layers/attention/q/kernel": (3, 24, 36),
        "layers/attention/q/bias": (3, 36),
        "layers/attention/k/kernel": (3, 24, 12),
        "layers/attention/k/bias": (3, 12),
        "layers/attention/v/kernel": (3, 24, 12),
        "layers/attention/v/bias": (3, 12),
        "layers/attention/o/kernel": (3, 36, 24),
        "layers/mlp_norm/scale": (3, 24),
        "layers/mlp/gate/kernel": (3, 24, 32),
        "layers/mlp/gate/bias": (3, 32),
        "layers/mlp/up/kernel": (3, 24, 32),
        "layers/mlp/up/bias": (3, 32),
        "layers/mlp/down/kernel": (3, 32, 24),
        "layers/mlp/down/bias": (3, 24),
        "norm/scale": (24,),
        "head/kernel": (24, 40),
    }


def test_tied_head_is_the_embedding_transposed(config, params):
    tied = config.model_copy(update={"tied_head": True})
    assert "head" not in abstract_params(tied, jnp.float32)
    np.testing.assert_array_equal(head_weight(tied, params), params["embed"]["weight"].T)
    np.testing.assert_array_equal(head_weight(config, params), params["head"]["kernel"])


@pytest.fixture(scope="module")
def fresh(config):
    init = jax.jit(init_params, static_argnums=(0, 2))
    return init(config, jax.random.key(3), jnp.bfloat16)


def test_fresh_parameters(config, fresh):
    expected = abstract_params(config, jnp.bfloat16)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )
    kernel = np.asarray(fresh["layers"]["mlp"]["up"]["kernel"], np.float32)
    assert kernel.std() == pytest.approx(0.02, rel=0.1)
    assert not np.array_equal(kernel[0], kernel[1])
    assert (np.asarray(fresh["norm"]["scale"], np.float32) == 1).all()
    assert (np.asarray(fresh["layers"]["attention"]["q"]["bias"], np.float32) == 0).all()


def test_parameters_are_born_sharded_with_the_same_values(config, fresh):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = shardings_for(abstract_params(config, jnp.bfloat16), mesh)
    init = jax.jit(init_params, static_argnums=(0, 2), out_shardings=shardings)
    sharded = init(config, jax.random.key(3), jnp.bfloat16)
    kernel = sharded["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 12, 16)
    jax.tree.map(np.testing.assert_array_equal, sharded, fresh)


@pytest.mark.parametrize("attention", ["dense", "tiles"])
def test_prefix_shared_rows_equal_separate_sequences(config, params, pairs, packed, attention):
    compute = dataclasses.replace(DENSE, attention=attention)
    logps_RS = token_logps(config, params, run(config, params, None, packed, compute), packed)
    for row, members in enumerate([[0, 1, 2], [3]]):
        scored = 0
        for member in members:
            for completion in pairs[member][1:]:
                apart = pairs[member]._replace(chosen_ids=completion, rejected_ids=completion[:1])
                shape = BatchShape(rows=1, row_length=64, scores=32)
                batch = pack_batch(Pairs([apart]), [[0]], shape, share_prefix=False)
                hidden = run(config, params, None, batch, DENSE)
                expected = token_logps(config, params, hidden, batch)[0, : len(completion)]
                ours = logps_RS[row, scored : scored + len(completion)]
                np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
                scored += len(completion)


def test_remat_keeps_fewer_activations_and_the_same_gradients(config, params, packed):
    def loss(params, batch, compute):
        hidden = hidden_states(config, params, None, batch, compute)
        return jnp.where(batch.pair_ids[:, :, None] > 0, hidden, 0).sum()

    gradients, temporaries = [], []
    for remat in ("none", "dots", "full"):
        compute = dataclasses.replace(DENSE, remat=remat)
        compiled = (
            jax.jit(jax.grad(loss), static_argnums=2).lower(params, packed, compute).compile()
        )
        gradients.append(compiled(params, packed))
        temporaries.append(temporary_bytes(compiled))
    none, dots, full = temporaries
    assert full < dots < none
    for other in gradients[1:]:
        for ours, exact in zip(jax.tree.leaves(other), jax.tree.leaves(gradients[0]), strict=True):
            np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_activations_have_the_compute_dtype(config, params, packed):
    exact = run(config, params, None, packed, DENSE)
    rounded = run(config, params, None, packed, dataclasses.replace(DENSE, dtype=jnp.bfloat16))
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    real = packed.pair_ids > 0
    error = np.abs(np.asarray(rounded, np.float32) - exact)[real]
    assert 0 < error.mean() < 0.05 * np.abs(exact[real]).mean()


def test_final_logits_are_scaled_then_capped(config, params):
    capped = config.model_copy(update={"logit_scale": 0.5, "logit_softcap": 3.0})
    hidden = jax.random.normal(jax.random.key(0), (2, 24))
    raw = np.asarray(hidden, np.float64) @ np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(logits(config, params, hidden), raw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        logits(capped, params, hidden), 3 * np.tanh(raw / 6), rtol=1e-4, atol=1e-5
    )


def test_a_later_token_never_changes_an_earlier_one(config, params, packed):
    changed = packed._replace(tokens=packed.tokens.copy())
    last = 11  # The last token of the first row's first pair, whose completion is the rejected one.
    changed.tokens[0, last] += 1
    before, after = (run(config, params, None, batch, DENSE)[0] for batch in (packed, changed))
    np.testing.assert_array_equal(before[:last], after[:last])
    np.testing.assert_array_equal(before[last + 1 :], after[last + 1 :])
    assert not np.allclose(before[last], after[last])


def test_config_refuses_what_does_not_fit():
    fields: dict[str, Any] = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_layers": 2,
        "mlp": MLPConfig(intermediate_size=8),
    }
    with pytest.raises(ValueError, match="num_heads 4 is not a multiple of num_kv_heads 3"):
        AttentionConfig(num_heads=4, num_kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="3 channels are rotated, which must be an even number"):
        AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=3)
    with pytest.raises(ValueError, match="rope and layer_ropes are both given"):
        AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=4, layer_ropes=(None,))
    with pytest.raises(ValueError, match="3 experts a token, of 2"):
        ExpertsConfig(num_experts=2, per_token=3)
    windowed = AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=8, windows=(4,))
    with pytest.raises(ValueError, match="1 windows for 2 layers"):
        ModelConfig(attention=windowed, **fields)


ROPE, OTHER = RopeConfig(), RopeConfig(theta=100.0)
# Each field of the config, by its dotted name, with another value than the fixture's.
CHANGES = {
    "vocab_size": 41,
    "hidden_size": 26,
    "num_layers": 2,
    "learned_positions": 16,
    "embed_scale": 2.0,
    "residual_scale": 0.5,
    "tied_head": True,
    "logit_scale": 0.5,
    "logit_softcap": 3.0,
    "parallel": True,
    "attention.num_heads": 4,
    "attention.num_kv_heads": 1,
    "attention.head_dim": 8,
    "attention.qkv_bias": False,
    "attention.output_bias": True,
    "attention.qk_norm": "head",
    "attention.scale": 0.1,
    "attention.softcap": 0.5,
    "attention.windows": (None, 4, 3),
    "attention.rope": None,
    "attention.rope.theta": 100.0,
    "attention.rope.partial": 0.5,
    "attention.rope.scaling": LinearScaling(factor=2.0),
    "attention.layer_ropes": (ROPE, None, OTHER),
    "attention.interleaved": True,
    "attention.query_scaling": QueryScaling(beta=0.5, length=2),
    "mlp.intermediate_size": 30,
    "mlp.bias": False,
    "mlp.activation": "gelu",
    "mlp.gated": False,
    "mlp.experts": ExpertsConfig(num_experts=2, per_token=1),
    "norm.kind": "layer",
    "norm.eps": 0.1,
    "norm.before": False,
    "norm.after": True,
}


def changed(config: BaseModel, path: list[str], value: Any) -> Any:
    """The config with the field at a path changed, unvalidated."""
    if len(path) > 1:
        value = changed(getattr(config, path[0]), path[1:], value)
    return config.model_copy(update={path[0]: value})


@pytest.mark.slow
def test_no_field_of_the_config_is_dead(config, params, packed):
    groups = {
        "": ModelConfig,
        "attention.": AttentionConfig,
        "attention.rope.": RopeConfig,
        "mlp.": MLPConfig,
        "norm.": NormConfig,
    }
    fields = {prefix + name for prefix, kind in groups.items() for name in kind.model_fields}
    assert CHANGES.keys() == fields - {"attention", "mlp", "norm"}

    def outcome(config):
        shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config, jnp.float32))
        if shapes != jax.tree.map(jnp.shape, params):
            return shapes, jnp.zeros(0)
        return shapes, logits(config, params, run(config, params, None, packed, DENSE))

    shapes, expected = outcome(config)
    for name, value in CHANGES.items():
        other_shapes, values = outcome(changed(config, name.split("."), value))
        assert other_shapes != shapes or not np.allclose(values, expected, atol=1e-3), name


@pytest.mark.parametrize("kind", ["rms-fp32", "rms-plus-one"])
def test_kinds_of_norm(config, params, packed, kind):
    """The order of rounding is nothing in fp32; a scale stored less one is the same."""
    other = changed(config, ["norm", "kind"], kind)
    stored = params
    if kind == "rms-plus-one":
        stored = jax.tree.map_with_path(
            lambda path, leaf: leaf - 1 if path[-1].key == "scale" else leaf, params
        )
    expected = run(config, params, None, packed, DENSE)
    np.testing.assert_allclose(
        run(other, stored, None, packed, DENSE), expected, rtol=1e-4, atol=1e-4
    )

"""Experts against a loop over tokens, and the router's loss against transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import AttentionConfig, ExpertsConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import forward, init_params
from jaxdpo.model.experts import RouterLoad, SparseMLP, router_loss
from jaxdpo.model.lora import LoraConfig, init_lora
from tests.tiny import random_pairs


def config_with(**experts) -> ModelConfig:
    return ModelConfig(
        vocab_size=97,
        hidden_size=8,
        num_layers=2,
        attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=4),
        mlp=MLPConfig(intermediate_size=6, experts=ExpertsConfig(num_experts=5, **experts)),
    )


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("crowded", [True, False])
def test_every_token_reaches_its_experts(normalized, crowded):
    config = config_with(per_token=2, normalized=normalized)
    layer = SparseMLP(config, nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 7, 8)).astype(np.float32)
    router = rng.standard_normal((8, 5)).astype(np.float32)
    if crowded:  # All tokens to the same two experts.
        x, router = np.abs(x), np.tile(np.arange(5, dtype=np.float32), (8, 1))
    layer.router.weight[...] = jnp.asarray(router)
    kernels = {}
    for name in ("gate", "up", "down"):
        linear = getattr(layer.experts, name)
        kernels[name] = rng.standard_normal(linear.kernel.shape)
        linear.kernel[...] = jnp.asarray(kernels[name], jnp.float32)
    outputs, load = layer(jnp.asarray(x), jnp.ones((3, 7)))

    expected = np.zeros(x.shape)
    chosen = np.zeros(5)
    for place in np.ndindex(3, 7):
        token = x[place].astype(np.float64)
        logits = token @ router
        probability = np.exp(logits - logits.max())
        probability /= probability.sum()
        top = np.argsort(-probability, kind="stable")[:2]
        weights = probability[top] / (probability[top].sum() if normalized else 1)
        for expert, weight in zip(top, weights, strict=True):
            gate, up = token @ kernels["gate"][expert], token @ kernels["up"][expert]
            expected[place] += weight * (gate / (1 + np.exp(-gate)) * up) @ kernels["down"][expert]
            chosen[expert] += 1 / 21
    np.testing.assert_allclose(outputs, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(load.chosen_E, chosen, rtol=1e-6)
    assert crowded == (np.count_nonzero(chosen) == 2)


def test_router_loss_equals_transformers():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((3, 2 * 6, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
    gates: Any = tuple(torch.tensor(layer) for layer in logits)
    theirs: Any = load_balancing_loss_func(gates, 5, 2, torch.tensor(mask))
    probability = jax.nn.softmax(logits)
    chosen = jax.nn.one_hot(jax.lax.top_k(probability, 2)[1], 5).sum(2)
    weights = jnp.asarray(mask.reshape(-1) / mask.sum(), jnp.float32)
    load = RouterLoad(
        jnp.einsum("n,lne->le", weights, chosen), jnp.einsum("n,lne->le", weights, probability)
    )
    np.testing.assert_allclose(router_loss(load), theirs.item(), rtol=1e-5)


def test_sharing_a_prompt_and_padding_leave_the_router_loss_alone():
    config = config_with(per_token=2)
    params = init_params(config, jax.random.key(0), jnp.float32)
    params = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 1 else leaf, params)
    pairs, compute = random_pairs(4, longest=9), Compute(jnp.float32, "dense", "none")
    losses = []
    for share, length in ((True, 64), (False, 96)):
        shape = BatchShape(rows=2, row_length=length, pairs=2, scores=40)
        batch = pack_batch(pairs, [[0, 1], [2, 3]], shape, share_prefix=share)
        run = jax.jit(forward, static_argnums=(0, 4))
        losses.append(run(config, params, None, batch, compute)[1])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0] > 2.01  # Two experts a token: 2 is a perfect balance.


def test_adapters_are_on_the_attention_alone():
    config = config_with(per_token=1)
    lora = jax.eval_shape(lambda: init_lora(config, LoraConfig(rank=2), jax.random.key(0)))
    assert {part: set(maps) for part, maps in lora["layers"].items()} == {"attention": set("qkvo")}

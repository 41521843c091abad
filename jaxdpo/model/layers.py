"""The decoder's parts as Flax NNX modules: they declare parameters and compute one layer.

Parameters are used in the dtype of the activations, whatever dtype they are stored in; norms and
the softmax are computed in fp32.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.model.config import ModelConfig
from jaxdpo.model.rope import rotate
from jaxdpo.sharding import uncut_embedding

# What a low-rank adapter adds to a linear layer's output: [..., in] → [..., out].
Adapter = Callable[[jax.Array], jax.Array]
Adapters = Mapping[str, Any]
# (q_BTHd, k_BTKd, v_BTKd) → (outputs_BTHd, whatever the caller collects from each layer).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_normal = nnx.initializers.normal(0.02)


class Linear(nnx.Module):
    """`x @ kernel + bias`, plus the adapter's term."""

    def __init__(self, inputs: int, outputs: int, bias: bool, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array, adapter: Adapter | None = None) -> jax.Array:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y += jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)
        if adapter is not None:
            y += adapter(x)
        return y


class Embedding(nnx.Module):
    """Token ids → vectors."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.weight = nnx.Param(_normal(rngs.params(), (config.vocab_size, config.hidden_size)))

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return uncut_embedding(self.weight[...])[tokens].astype(dtype)


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, config: ModelConfig):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.hidden_size))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        # Llama rounds to the activations' dtype before it multiplies by the scale.
        normed = (x32 * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
        return normed * jnp.broadcast_to(self.scale[...].astype(x.dtype), x.shape)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; who sees whom is the caller's `attend`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape, width = config.attention, config.hidden_size
        self.head_dim = shape.head_dim
        q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q = Linear(width, q_size, shape.qkv_bias, rngs)
        self.k = Linear(width, kv_size, shape.qkv_bias, rngs)
        self.v = Linear(width, kv_size, shape.qkv_bias, rngs)
        self.o = Linear(q_size, width, shape.output_bias, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        attend: Attend,
        adapters: Adapters,
    ) -> tuple[jax.Array, Any]:
        def heads(name: str) -> jax.Array:
            y = getattr(self, name)(x_BTD, adapters.get(name))
            return y.reshape(*y.shape[:-1], -1, self.head_dim)

        q_BTHd, k_BTKd, v_BTKd = heads("q"), heads("k"), heads("v")
        outputs_BTHd, collected = attend(rotate(q_BTHd, cos_sin), rotate(k_BTKd, cos_sin), v_BTKd)
        merged = outputs_BTHd.reshape(*x_BTD.shape[:-1], -1)
        return self.o(merged, adapters.get("o")), collected


class MLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))` (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, middle, bias = config.hidden_size, config.mlp.intermediate_size, config.mlp.bias
        self.gate = Linear(width, middle, bias, rngs)
        self.up = Linear(width, middle, bias, rngs)
        self.down = Linear(middle, width, bias, rngs)

    def __call__(self, x: jax.Array, adapters: Adapters) -> jax.Array:
        gated = jax.nn.silu(self.gate(x, adapters.get("gate"))) * self.up(x, adapters.get("up"))
        return self.down(gated, adapters.get("down"))


class Block(nnx.Module):
    """One layer of the decoder: attention and MLP, each normed before and added to the stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        hidden_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        attend: Attend,
        adapters: Adapters,
    ) -> tuple[jax.Array, Any]:
        attended_BTD, collected = self.attention(
            self.attention_norm(hidden_BTD), cos_sin, attend, adapters.get("attention", {})
        )
        hidden_BTD += attended_BTD
        hidden_BTD += self.mlp(self.mlp_norm(hidden_BTD), adapters.get("mlp", {}))
        return hidden_BTD, collected


class Decoder(nnx.Module):
    """The whole model. `layers` is one block whose parameters have a leading axis of layers."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.embed = Embedding(config, rngs)
        keys_L = jax.random.split(rngs.params(), config.num_layers)
        self.layers = jax.vmap(lambda key: Block(config, nnx.Rngs(params=key)))(keys_L)
        self.norm = RMSNorm(config)
        if not config.tied_head:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False, rngs=rngs)

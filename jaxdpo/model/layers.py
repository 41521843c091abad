"""The decoder's parts as Flax NNX modules: they declare parameters and compute one layer.

Parameters are used in the dtype of the activations, whatever dtype they are stored in; norms and
the softmax are computed in fp32.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.devices.sharding import gather_weight
from jaxdpo.model.config import ModelConfig, NormConfig
from jaxdpo.model.experts import ACTIVATIONS, SparseMLP
from jaxdpo.model.quantized import product
from jaxdpo.model.rope import rotate

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
        y = product(x, self.kernel[...])
        if self.bias is not None:
            y += jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)
        if adapter is not None:
            y += adapter(x)
        return y


class Embedding(nnx.Module):
    """Token ids, or positions → vectors."""

    def __init__(self, rows: int, config: ModelConfig, rngs: nnx.Rngs):
        self.weight = nnx.Param(_normal(rngs.params(), (rows, config.hidden_size)))

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return gather_weight(self.weight[...], vocabulary=0)[tokens].astype(dtype)


class Norm(nnx.Module):
    """`x / rms(x) * scale` (https://arxiv.org/abs/1910.07467), or LayerNorm, over the last axis."""

    def __init__(self, config: NormConfig, size: int):
        self.kind, self.eps = config.kind, config.eps
        neutral = 0.0 if self.kind == "rms-plus-one" else 1.0
        self.scale = nnx.Param(jnp.full(size, neutral))
        self.bias = nnx.Param(jnp.zeros(size)) if self.kind == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        if self.kind == "layer":
            x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.eps)
        if self.kind == "rms":
            normed = normed.astype(x.dtype)
        scale = self.scale[...].astype(normed.dtype)
        if self.kind == "rms-plus-one":
            scale += 1.0
        normed *= jnp.broadcast_to(scale, x.shape)
        if self.bias is not None:
            normed += jnp.broadcast_to(self.bias[...].astype(normed.dtype), x.shape)
        return normed.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; who sees whom is the caller's `attend`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape, width = config.attention, config.hidden_size
        self.head_dim, self.qk_norm = shape.head_dim, shape.qk_norm
        q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q = Linear(width, q_size, shape.qkv_bias, rngs)
        self.k = Linear(width, kv_size, shape.qkv_bias, rngs)
        self.v = Linear(width, kv_size, shape.qkv_bias, rngs)
        self.o = Linear(q_size, width, shape.output_bias, rngs)
        if shape.qk_norm is not None:
            per_head = shape.qk_norm == "head"
            self.q_norm = Norm(config.norm, shape.head_dim if per_head else q_size)
            self.k_norm = Norm(config.norm, shape.head_dim if per_head else kv_size)

    def __call__(
        self,
        x_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array] | None,
        attend: Attend,
        adapters: Adapters,
    ) -> tuple[jax.Array, Any]:
        def heads(name: str) -> jax.Array:
            y = getattr(self, name)(x_BTD, adapters.get(name))
            norm = getattr(self, f"{name}_norm", None)
            if norm is not None and self.qk_norm == "flat":
                y = norm(y)
            y = y.reshape(*y.shape[:-1], -1, self.head_dim)
            return norm(y) if norm is not None and self.qk_norm == "head" else y

        q_BTHd, k_BTKd, v_BTKd = heads("q"), heads("k"), heads("v")
        outputs_BTHd, collected = attend(rotate(q_BTHd, cos_sin), rotate(k_BTKd, cos_sin), v_BTKd)
        merged = outputs_BTHd.reshape(*x_BTD.shape[:-1], -1)
        return self.o(merged, adapters.get("o")), collected


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))` (https://arxiv.org/abs/2002.05202), or `down(act(up(x)))`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, middle, bias = config.hidden_size, config.mlp.intermediate_size, config.mlp.bias
        self.activation = config.mlp.activation
        if config.mlp.gated:
            self.gate = Linear(width, middle, bias, rngs)
        self.up = Linear(width, middle, bias, rngs)
        self.down = Linear(middle, width, bias, rngs)

    def __call__(self, x: jax.Array, adapters: Adapters) -> jax.Array:
        act, y = ACTIVATIONS[self.activation], self.up(x, adapters.get("up"))
        gate = getattr(self, "gate", None)
        y = act(y) if gate is None else act(gate(x, adapters.get("gate"))) * y
        return self.down(y, adapters.get("down"))


class Block(nnx.Module):
    """One layer of the decoder: attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.residual_scale = config.residual_scale
        self.attention = Attention(config, rngs)
        self.mlp = (MLP if config.mlp.experts is None else SparseMLP)(config, rngs)
        if config.norm.before:
            self.attention_norm = Norm(config.norm, config.hidden_size)
            self.mlp_norm = Norm(config.norm, config.hidden_size)
        if config.norm.after:
            self.attention_post_norm = Norm(config.norm, config.hidden_size)
            self.mlp_post_norm = Norm(config.norm, config.hidden_size)

    def __call__(
        self,
        hidden_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array] | None,
        attend: Attend,
        adapters: Adapters,
        token_weights_BT: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """The residual stream after it, and (what `attend` collected, router's load)."""

        def normed(name: str, x: jax.Array) -> jax.Array:
            norm = getattr(self, name, None)
            return x if norm is None else norm(x)

        def added(name: str, y: jax.Array) -> jax.Array:
            y = normed(name, y)
            return y if self.residual_scale == 1.0 else y * self.residual_scale

        attended_BTD, collected = self.attention(
            normed("attention_norm", hidden_BTD), cos_sin, attend, adapters.get("attention", {})
        )
        hidden_BTD += added("attention_post_norm", attended_BTD)
        x_BTD, load = normed("mlp_norm", hidden_BTD), None
        if isinstance(self.mlp, SparseMLP):
            y_BTD, load = self.mlp(x_BTD, token_weights_BT)
        else:
            y_BTD = self.mlp(x_BTD, adapters.get("mlp", {}))
        return hidden_BTD + added("mlp_post_norm", y_BTD), (collected, load)


class Decoder(nnx.Module):
    """The whole model. `layers` is one block whose parameters have a leading axis of layers."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.embed = Embedding(config.vocab_size, config, rngs)
        if config.learned_positions is not None:
            self.positions = Embedding(config.learned_positions, config, rngs)
        keys_L = jax.random.split(rngs.params(), config.num_layers)
        self.layers = jax.vmap(lambda key: Block(config, nnx.Rngs(params=key)))(keys_L)
        self.norm = Norm(config.norm, config.hidden_size)
        if not config.tied_head:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False, rngs=rngs)

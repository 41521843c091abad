"""The decoder's parts as Flax NNX modules: they declare parameters and compute one layer.

Parameters are used in the dtype of the activations, whatever dtype they are stored in; norms and
the softmax are computed in fp32.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdpo.devices.sharding import gather_weight
from jaxdpo.model.config import ModelConfig, NormConfig
from jaxdpo.model.experts import RouterLoad, SparseMLP
from jaxdpo.model.groups import MLPKind, layers_with, mlp_kinds
from jaxdpo.model.mlp import MLP, Adapters, Linear
from jaxdpo.model.rope import rotate

# (q_BTHd, k_BTKd, v_BTKd) → (outputs_BTHd, whatever the caller collects from each layer).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_normal = nnx.initializers.normal(0.02)


class Embedding(nnx.Module):
    """A table of vectors, looked up by token ids or by positions."""

    def __init__(self, rows: int, config: ModelConfig, rngs: nnx.Rngs):
        self.weight = nnx.Param(_normal(rngs.params(), (rows, config.hidden_size)))

    def __call__(self, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        weight_VD = gather_weight(self.weight[...], vocabulary=0)
        # Looked up first and cast afterwards: casting the table would copy all of it.
        return weight_VD[ids_BT].astype(dtype)


class Norm(nnx.Module):
    """`x / rms(x) * scale` (https://arxiv.org/abs/1910.07467), or LayerNorm, over the last axis."""

    def __init__(self, config: NormConfig, size: int):
        self.kind, self.eps = config.kind, config.eps
        self.plus_one = self.kind in ("rms-plus-one", "layer-plus-one")
        self.scale = nnx.Param(jnp.full(size, 0.0 if self.plus_one else 1.0))
        biased = self.kind in ("layer", "layer-plus-one")
        self.bias = nnx.Param(jnp.zeros(size)) if biased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        # In fp32: a sum of squares over thousands of channels loses half its bits in bf16.
        x32 = x.astype(jnp.float32)
        if self.kind.startswith("layer"):
            x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.eps)
        # Llama rounds before it scales, Gemma and OLMo 2 after: a family's weights were trained
        # with one of the two, and the other moves logits by more than bf16's rounding.
        if self.kind == "rms":
            normed = normed.astype(x.dtype)
        scale = self.scale[...].astype(normed.dtype)
        if self.plus_one:
            scale += 1.0
        normed *= jnp.broadcast_to(scale, x.shape)
        if self.bias is not None:
            normed += jnp.broadcast_to(self.bias[...].astype(normed.dtype), x.shape)
        return normed.astype(x.dtype)


def _normed(norm: Norm | None, x: jax.Array) -> jax.Array:
    """Applies a norm that an architecture may lack."""
    return x if norm is None else norm(x)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; who sees whom is the caller's `attend`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape, width = config.attention, config.hidden_size
        self.head_dim, self.qk_norm = shape.head_dim, shape.qk_norm
        self.interleaved = shape.interleaved
        q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q = Linear(width, q_size, shape.qkv_bias, rngs)
        self.k = Linear(width, kv_size, shape.qkv_bias, rngs)
        self.v = Linear(width, kv_size, shape.qkv_bias, rngs)
        self.o = Linear(q_size, width, shape.output_bias, rngs)

        def norm(size: int) -> Norm | None:
            if shape.qk_norm is None:
                return None
            return Norm(config.norm, size if shape.qk_norm == "flat" else shape.head_dim)

        self.q_norm, self.k_norm = norm(q_size), norm(kv_size)

    def __call__(
        self,
        x_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array] | None,
        attend: Attend,
        adapters: Adapters,
    ) -> tuple[jax.Array, Any]:
        q_BTHd = self._heads(self.q(x_BTD, adapters.get("q")), self.q_norm)
        k_BTKd = self._heads(self.k(x_BTD, adapters.get("k")), self.k_norm)
        v_BTKd = self._heads(self.v(x_BTD, adapters.get("v")), None)
        q_BTHd, k_BTKd = (rotate(x, cos_sin, self.interleaved) for x in (q_BTHd, k_BTKd))
        if self.qk_norm == "head-rotated":
            q_BTHd, k_BTKd = _normed(self.q_norm, q_BTHd), _normed(self.k_norm, k_BTKd)
        outputs_BTHd, collected = attend(q_BTHd, k_BTKd, v_BTKd)
        # The heads side by side again, [B, T, H·d], as the output projection reads them.
        merged = outputs_BTHd.reshape(*x_BTD.shape[:-1], -1)
        return self.o(merged, adapters.get("o")), collected

    def _heads(self, y: jax.Array, norm: Norm | None) -> jax.Array:
        """Splits a projection `[B, T, heads·d]` into heads, normed before or after the split."""
        # OLMo 2 norms all heads as one vector, Qwen 3 and Gemma 3 each head by itself.
        if self.qk_norm == "flat":
            y = _normed(norm, y)
        y = y.reshape(*y.shape[:-1], -1, self.head_dim)
        return _normed(norm, y) if self.qk_norm == "head" else y


class BlockOutputs(NamedTuple):
    """A layer's outputs beside the residual stream.

    Attributes:
      collected: Whatever `attend` returned with its outputs.
      load: The router's load; None without experts.
    """

    collected: Any
    load: RouterLoad | None


class Block(nnx.Module):
    """One layer of the decoder: attention and MLP, each added to the residual stream.

    A layer has either `mlp`, which are the experts of a model with experts, or `dense_mlp`; a block
    that stands for all layers of a model declares what any of them has.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, kinds: Collection[MLPKind] = ("mlp",)):
        self.residual_scale, self.parallel = config.residual_scale, config.parallel
        self.attention = Attention(config, rngs)
        experts = config.mlp.experts
        kind = MLP if experts is None else SparseMLP
        # Each is assigned once: NNX decides by the first value whether an attribute holds arrays.
        self.mlp = kind(config, rngs) if "mlp" in kinds else None
        size = experts.dense.intermediate_size if experts and experts.dense else None
        self.dense_mlp = MLP(config, rngs, size) if "dense_mlp" in kinds else None

        def norm(has_one: bool) -> Norm | None:
            return Norm(config.norm, config.hidden_size) if has_one else None

        # Llama norms what the sublayers read, OLMo 2 what they add, Gemma 2 and 3 both; parallel
        # sublayers read what one norm makes.
        self.attention_norm = norm(config.norm.before)
        self.mlp_norm = norm(config.norm.before and not config.parallel)
        self.attention_post_norm = norm(config.norm.after)
        self.mlp_post_norm = norm(config.norm.after)

    def __call__(
        self,
        hidden_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array] | None,
        attend: Attend,
        adapters: Adapters,
        token_weights_BT: jax.Array,
    ) -> tuple[jax.Array, BlockOutputs]:
        """Returns the residual stream after this layer, and what else the layer leaves."""
        normed_BTD = _normed(self.attention_norm, hidden_BTD)
        attended_BTD, collected = self.attention(
            normed_BTD, cos_sin, attend, adapters.get("attention", {})
        )
        hidden_BTD += self._scaled(_normed(self.attention_post_norm, attended_BTD))
        x_BTD = normed_BTD if self.parallel else _normed(self.mlp_norm, hidden_BTD)
        load = None
        if isinstance(self.mlp, SparseMLP):
            y_BTD, load = self.mlp(x_BTD, token_weights_BT)
        else:
            part: MLPKind = "dense_mlp" if self.mlp is None else "mlp"
            mlp = self.dense_mlp if self.mlp is None else self.mlp
            assert mlp is not None
            y_BTD = mlp(x_BTD, adapters.get(part, {}))
        hidden_BTD += self._scaled(_normed(self.mlp_post_norm, y_BTD))
        return hidden_BTD, BlockOutputs(collected, load)

    def _scaled(self, y_BTD: jax.Array) -> jax.Array:
        # A product with 1 is left out, so that models without the factor are computed as before.
        return y_BTD if self.residual_scale == 1.0 else y_BTD * self.residual_scale


def _stacked_blocks(config: ModelConfig, keys_L: jax.Array) -> Block:
    """Makes a block whose parts are stacked over the layers that have them."""
    kinds = set(mlp_kinds(config))
    block = jax.vmap(lambda key: Block(config, nnx.Rngs(params=key), kinds))(keys_L)
    if len(kinds) > 1:
        # Drawn for all layers, and kept for those that have the part.
        for part in kinds:
            rows = np.array(layers_with(config, part))
            kept = jax.tree.map(lambda leaf, at=rows: leaf[at], getattr(block, part))
            setattr(block, part, kept)
    return block


class Decoder(nnx.Module):
    """The whole model. `layers` is one block whose parameters have a leading axis of layers.

    Without it, what stands before and after the layers.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layers: bool = True):
        self.embed = Embedding(config.vocab_size, config, rngs)
        learned = config.learned_positions
        self.positions = None if learned is None else Embedding(learned, config, rngs)
        # A key a layer, so that the layers differ; `vmap` stacks what the blocks make of them.
        keys_L = jax.random.split(rngs.params(), config.num_layers)
        self.layers = _stacked_blocks(config, keys_L) if layers else None
        self.norm = Norm(config.norm, config.hidden_size)
        width, tokens = config.hidden_size, config.vocab_size
        self.head = None if config.tied_head else Linear(width, tokens, bias=False, rngs=rngs)

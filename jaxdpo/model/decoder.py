"""The decoder as pure functions of nested dicts of arrays.

Flax NNX modules (`layers.py`) declare what parameters there are; `_bind` is the one place where a
dict becomes a module. Layers are stored stacked, `[L, ...]`, and run by `jax.lax.scan`.

    params = init_params(config, jax.random.key(0), jnp.float32)
    hidden_BTD = hidden_states(config, params, None, batch, Compute(jnp.float32, "dense", "none"))
    logits_BTV = logits(config, params, hidden_BTD)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.data.batch import PackedBatch
from jaxdpo.model.attention import NO_WINDOW, dense_mask, masked_attention, within_window
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.layers import Decoder
from jaxdpo.model.rope import rotation

# A nested dict of arrays, such as {"embed": {"weight": ...}, "layers": {"attention": ...}, ...}.
Params = dict[str, Any]


@dataclass(frozen=True)
class Compute:
    """How the model is computed, which changes its cost and rounding but not its meaning.

    Attributes:
      dtype: Of activations and matrix products; norms, softmax and rotation are fp32 always.
      attention: "dense" (the mask written out) or "gather" (ordinary causal rows).
      remat: What the backward pass computes again: "none", "dots" (all but the products with
        parameters), "full" (all but each layer's input).
    """

    dtype: Any
    attention: Literal["dense", "gather"]
    remat: Literal["none", "dots", "full"]


def init_params(config: ModelConfig, key: jax.Array, dtype: Any) -> Params:
    """Random parameters: normal with deviation 0.02; norms one, biases zero."""
    decoder = Decoder(config, nnx.Rngs(params=key))
    params = nnx.to_pure_dict(nnx.state(decoder))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(config: ModelConfig, dtype: Any) -> Params:
    """Shapes and dtypes of the parameters, without computing any."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


@lru_cache
def _structure(config: ModelConfig) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))[0]


def _bind(config: ModelConfig, params: Params) -> Decoder:
    return nnx.merge(_structure(config), params)


# q, k, v and the layer's own data (its window, its part of a cache) → outputs, collected.
LayerAttend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def run_layers(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    attend: LayerAttend,
    layer_data: Any,
    compute: Compute,
) -> tuple[jax.Array, Any]:
    """Embeds tokens, runs the layers with a given attention, and norms.

    Args:
      config: Architecture.
      params: The parameters.
      tokens_BT: i32 token ids.
      positions_BT: i32 positions in their sequences.
      attend: Attention of one layer.
      layer_data: Pytree of arrays `[L, ...]`; `attend` is given its layer's slice.
      compute: Dtype and remat policy.

    Returns:
      `hidden_BTD` after the final norm, and what `attend` collected, stacked `[L, ...]`.
    """
    decoder = _bind(config, params)
    cos_sin = rotation(config.rope, config.attention.head_dim, positions_BT)

    def layer(hidden_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        block, data = inputs
        return block(hidden_BTD, cos_sin, lambda q, k, v: attend(q, k, v, data), {})

    hidden_BTD = decoder.embed(tokens_BT, compute.dtype)
    hidden_BTD, collected = jax.lax.scan(
        _rematerialised(layer, compute), hidden_BTD, (decoder.layers, layer_data)
    )
    return decoder.norm(hidden_BTD), collected


def _rematerialised(layer: Callable, compute: Compute) -> Callable:
    if compute.remat == "none":
        return layer
    save_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = save_dots if compute.remat == "dots" else None
    # Inside a scan nothing can be shared with the forward pass, so the guard against it only costs.
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


def layer_windows(config: ModelConfig) -> jax.Array | None:
    """Each layer's window, i32 `[L]`, or None if no layer has one."""
    windows = config.attention.windows
    if windows is None or not any(windows):
        return None
    return jnp.array([window or NO_WINDOW for window in windows], jnp.int32)


def hidden_states(
    config: ModelConfig,
    params: Params,
    lora: Params | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states of a packed batch, `[B, T, D]` in `compute.dtype`, after the final norm."""
    del lora, dropout_key
    scale = config.attention.head_dim**-0.5
    mask_BTT = dense_mask(batch)

    def attend(q, k, v, window):
        mask = mask_BTT
        if window is not None:
            mask &= within_window(batch.positions, batch.positions, window)
        return masked_attention(q, k, v, mask, scale), None

    return run_layers(
        config, params, batch.tokens, batch.positions, attend, layer_windows(config), compute
    )[0]


def head_weight(config: ModelConfig, params: Params) -> jax.Array:
    """The matrix from hidden states to logits, `[D, V]`: of a tied head, the embedding's."""
    return params["embed"]["weight"].T if config.tied_head else params["head"]["kernel"]


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits over the vocabulary, f32 `[..., V]`, of hidden states `[..., D]`."""
    weight = head_weight(config, params).astype(hidden.dtype)
    scores = jnp.matmul(hidden, weight, preferred_element_type=jnp.float32) * config.logit_scale
    if config.logit_softcap is None:
        return scores
    return config.logit_softcap * jnp.tanh(scores / config.logit_softcap)

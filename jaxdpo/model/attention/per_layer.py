"""The attention of each layer: one batch, whose layers may differ in how far back they see."""

from collections.abc import Callable
from typing import Any, assert_never

import jax
import jax.numpy as jnp

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.model.attention.cudnn import cudnn_attention
from jaxdpo.model.attention.dense import AttentionKind, dense_attention
from jaxdpo.model.attention.pallas import pallas_attention
from jaxdpo.model.attention.splash import splash_attention
from jaxdpo.model.attention.tiles import tile_attention
from jaxdpo.model.config import ModelConfig

# (q, k, v, number of the layer) → (outputs, what is collected from each layer).
LayerAttend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def layer_attention(batch: PackedBatch, kind: AttentionKind, config: ModelConfig) -> LayerAttend:
    """Returns the attention of every layer over a batch.

    Args:
      batch: B rows of T tokens, with what `kind` needs filled in (`LAYOUTS` of dense.py).
      kind: Who computes it.
      config: Architecture: scale, soft cap and windows.
    """
    match kind:
        case "dense":
            return _by_traced_window(dense_attention, batch, config)
        case "tiles":
            return _by_traced_window(tile_attention, batch, config)
        case "splash":
            return _by_static_window(splash_attention, batch, config)
        case "pallas":
            return _by_static_window(pallas_attention, batch, config)
        case "cudnn":
            return _by_static_window(cudnn_attention, batch, config)
        case _:
            assert_never(kind)


def _by_traced_window(
    attention: Callable[..., Any], batch: PackedBatch, config: ModelConfig
) -> LayerAttend:
    """Returns an attention whose window is a number on the device: one program for all layers."""
    windows_L = layer_windows(config)

    def attend(q_BTHd, k_BTKd, v_BTKd, layer):
        window = None if windows_L is None else windows_L[layer]
        scale, softcap = attention_scale(config), config.attention.softcap
        return attention(batch, scale, window, softcap)(q_BTHd, k_BTKd, v_BTKd)

    return attend


def _by_static_window(
    kernel: Callable[..., Any], batch: PackedBatch, config: ModelConfig
) -> LayerAttend:
    """Returns an attention by a kernel, which is compiled anew for each different window."""
    windows = config.attention.windows or (None,) * config.num_layers
    different = list(dict.fromkeys(windows))
    scale, softcap = attention_scale(config), config.attention.softcap
    by_window = [kernel(batch, scale, window, softcap) for window in different]
    if len(by_window) == 1:
        return lambda q, k, v, layer: by_window[0](q, k, v)
    # The layers run in one scan, where the number of the layer is not known at compile time: all
    # kernels are in the program, and a layer runs its own.
    kernel_L = jnp.array([different.index(window) for window in windows])
    return lambda q, k, v, layer: jax.lax.switch(kernel_L[layer], by_window, q, k, v)


def layer_windows(config: ModelConfig) -> jax.Array | None:
    """Returns how many positions back each layer sees, i32 `[L]`; None if every layer sees all."""
    windows = config.attention.windows
    if windows is None:
        return None
    unlimited = jnp.iinfo(jnp.int32).max
    return jnp.array([unlimited if window is None else window for window in windows], jnp.int32)


def attention_scale(config: ModelConfig) -> float:
    """Returns the factor on the attention's scores."""
    scale = config.attention.scale
    return config.attention.head_dim**-0.5 if scale is None else scale

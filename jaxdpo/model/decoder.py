"""The decoder as pure functions of nested dicts of arrays.

Flax NNX modules (`layers.py`) declare what parameters there are; `run_layers` is the one place
where a dict becomes a module. Layers are stored stacked, `[L, ...]`, and run by `jax.lax.scan`.

    compute = Compute(jnp.float32, attention="dense", remat="none")
    params = init_params(config, jax.random.key(0), jnp.float32)
    hidden_BTD = hidden_states(config, params, None, batch, compute)
    logits_BTV = logits(config, params, hidden_BTD)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.data.batch import PackedBatch
from jaxdpo.model.attention import AttentionKind, batch_attention
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.layers import Decoder
from jaxdpo.model.lora import LoraConfig, LoraParams, layer_adapters
from jaxdpo.model.rope import rotation
from jaxdpo.sharding import cut_rows

# A nested dict of arrays, such as {"embed": {"weight": ...}, "layers": {"attention": ...}, ...}.
Params = dict[str, Any]

# (q, k, v, number of the layer) → (outputs, what is collected from each layer).
LayerAttend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class Compute:
    """How the model is computed; a static argument of `jax.jit`.

    Attributes:
      dtype: Of activations and matrix products. Norms, softmax and rotation are fp32 always.
      attention: "dense" (the mask written out) or "gather" (ordinary causal sequences).
      remat: What the backward pass computes again: "none"; "dots", all but the products with
        parameters; "full", all but each layer's input.
      lora: Scale and dropout of the adapters; needed where adapters are passed.
    """

    dtype: Any
    attention: AttentionKind
    remat: Literal["none", "dots", "full"]
    lora: LoraConfig | None = None


def init_params(config: ModelConfig, key: jax.Array, dtype: Any) -> Params:
    """Random parameters: normal with deviation 0.02; norms one, biases zero."""
    params = nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(params=key))))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(config: ModelConfig, dtype: Any) -> Params:
    """Shapes and dtypes of the parameters, computing none."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def hidden_states(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states of a packed batch after the final norm, `[B, T, D]` in `compute.dtype`.

    Args:
      config: Architecture; static under jit.
      params: Parameters of any float dtype.
      lora: Adapters; None for the base model.
      batch: B rows of T tokens.
      compute: Dtype, attention and remat; static under jit.
      dropout_key: Key of the adapters' dropout; None, for none, except in training.
    """
    windows_L = layer_windows(config)
    scale = attention_scale(config)

    def attend(q, k, v, layer):
        window = None if windows_L is None else windows_L[layer]
        return batch_attention(batch, compute.attention, scale, window)(q, k, v)

    tokens, positions = batch.tokens, batch.positions
    return run_layers(config, params, lora, (tokens, positions), attend, compute, dropout_key)[0]


def run_layers(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    tokens_and_positions: tuple[jax.Array, jax.Array],
    attend: LayerAttend,
    compute: Compute,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Embeds tokens i32 `[B, T]` and runs all layers with the given attention.

    Returns:
      `hidden_BTD` after the final norm, and what `attend` collected, stacked `[L, ...]`.
    """
    structure = nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))
    decoder = nnx.merge(structure, params)
    tokens_BT, positions_BT = tokens_and_positions
    cos_sin = rotation(config.rope, config.attention.head_dim, positions_BT)

    def run_layer(hidden_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        block, layer_lora, layer = inputs
        # Rows stay where they are; parameters come to them.
        hidden_BTD = cut_rows(hidden_BTD)
        adapters = {}
        if layer_lora is not None:
            assert compute.lora is not None, "adapters need compute.lora for their scale"
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            adapters = layer_adapters(layer_lora, compute.lora, key)
        return block(hidden_BTD, cos_sin, lambda q, k, v: attend(q, k, v, layer), adapters)

    hidden_BTD, collected = jax.lax.scan(
        _rematerialised(run_layer, compute),
        cut_rows(decoder.embed(tokens_BT, compute.dtype)),
        (decoder.layers, lora and lora["layers"], jnp.arange(config.num_layers)),
    )
    return decoder.norm(hidden_BTD), collected


def _rematerialised(run_layer: Callable, compute: Compute) -> Callable:
    if compute.remat == "none":
        return run_layer
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = products if compute.remat == "dots" else None
    # In a scan the passes can't share work by accident, so the guard against that only costs.
    return jax.checkpoint(run_layer, policy=policy, prevent_cse=False)


def layer_windows(config: ModelConfig) -> jax.Array | None:
    """How many positions back each layer sees, i32 `[L]`; None if every layer sees all."""
    windows = config.attention.windows
    if windows is None:
        return None
    unlimited = jnp.iinfo(jnp.int32).max
    return jnp.array([unlimited if window is None else window for window in windows], jnp.int32)


def attention_scale(config: ModelConfig) -> float:
    """Factor on the attention's scores, d^-½."""
    return config.attention.head_dim**-0.5


def head_weight(config: ModelConfig, params: Params) -> jax.Array:
    """The matrix from hidden states to logits, `[D, V]`: of a tied head, the embedding's."""
    return params["embed"]["weight"].T if config.tied_head else params["head"]["kernel"]


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits over the vocabulary, f32 `[..., V]`, of hidden states `[..., D]`."""
    weight_DV = head_weight(config, params).astype(hidden.dtype)
    scores = jnp.matmul(hidden, weight_DV, preferred_element_type=jnp.float32) * config.logit_scale
    if config.logit_softcap is None:
        return scores
    return config.logit_softcap * jnp.tanh(scores / config.logit_softcap)

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
from operator import itemgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.data.packing.batch import CHOSEN, PROMPT, REJECTED, PackedBatch
from jaxdpo.devices.sharding import shard_rows
from jaxdpo.model.attention.cudnn import cudnn_attention
from jaxdpo.model.attention.dense import AttentionKind, dense_attention
from jaxdpo.model.attention.splash import splash_attention
from jaxdpo.model.attention.tiles import tile_attention
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.experts import RouterLoad, router_loss
from jaxdpo.model.layers import Decoder
from jaxdpo.model.lora import LoraConfig, LoraParams, layer_adapters
from jaxdpo.model.quantized import is_quantized
from jaxdpo.model.rope import rotation

# A nested dict of arrays, such as {"embed": {"weight": ...}, "layers": {"attention": ...}, ...}.
Params = dict[str, Any]

# (q, k, v, number of the layer) → (outputs, what is collected from each layer).
LayerAttend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class Compute:
    """How the model is computed; a static argument of `jax.jit`.

    Attributes:
      dtype: Of activations and matrix products. Norms, softmax and rotation are fp32 always.
      attention: "dense" (the mask written out), "tiles" (the parts of it that hold anything), or
        sequences laid out apart for a kernel: "splash" on TPUs, "cudnn" on GPUs.
      remat: What the backward pass computes again: "none"; "dots", all but the products with
        parameters; "full", all but each layer's input.
      lora: Scale and dropout of the adapters; needed where adapters are passed.
      offloaded: Whether the parameters lie in the host's memory.
    """

    dtype: Any
    attention: AttentionKind
    remat: Literal["none", "dots", "full"]
    lora: LoraConfig | None = None
    offloaded: bool = False

    def fetched(self, tree: Any) -> Any:
        """Parameters in the device's memory."""
        return jax.device_put(tree, jax.memory.Space.Device) if self.offloaded else tree


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
    return hidden_states_and_router_loss(
        config, params, lora, batch, compute, dropout_key=dropout_key
    )[0]


def hidden_states_and_router_loss(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """`hidden_states`, and the experts' load-balancing loss, f32 scalar; None without experts.

    The loss is over the tokens of the separate sequences: a shared prompt counts for both of its
    completions.
    """
    attend = layer_attention(batch, compute.attention, config)
    weights = None if config.mlp.experts is None else sequences_of_token(batch)
    tokens = (batch.tokens, batch.positions)
    hidden_BTD, _, load_L = run_layers(
        config, params, lora, tokens, attend, compute, dropout_key, weights
    )
    return hidden_BTD, None if load_L is None else router_loss(load_L)


def layer_attention(batch: PackedBatch, kind: AttentionKind, config: ModelConfig) -> LayerAttend:
    """The attention of every layer over a batch."""
    scale, softcap = attention_scale(config), config.attention.softcap
    if kind == "dense" or kind == "tiles":
        attention = {"dense": dense_attention, "tiles": tile_attention}[kind]
        windows_L = layer_windows(config)

        def attend(q, k, v, layer):
            window = None if windows_L is None else windows_L[layer]
            return attention(batch, scale, window, softcap)(q, k, v)

        return attend
    # Kernels take static windows: one call for each that there is, of which a layer runs its own.
    windows = config.attention.windows or (None,) * config.num_layers
    different = list(dict.fromkeys(windows))
    kernel = {"splash": splash_attention, "cudnn": cudnn_attention}[kind]
    by_window = [kernel(batch, scale, window, softcap) for window in different]
    if len(by_window) == 1:
        return lambda q, k, v, layer: by_window[0](q, k, v)
    number_L = jnp.array([different.index(window) for window in windows])
    return lambda q, k, v, layer: jax.lax.switch(number_L[layer], by_window, q, k, v)


def sequences_of_token(batch: PackedBatch) -> jax.Array:
    """In how many of the separate sequences a token stands, f32 `[R, T]`: padding in none."""

    def completed(pair_ids_T: jax.Array, branches_T: jax.Array, branch: int) -> jax.Array:
        of_branch_T = (branches_T == branch).astype(jnp.float32)
        segments = pair_ids_T.shape[0] + 1
        return jax.ops.segment_max(of_branch_T, pair_ids_T, segments)[pair_ids_T]

    both = [
        jax.vmap(completed, in_axes=(0, 0, None))(batch.pair_ids, batch.branches, branch)
        for branch in (CHOSEN, REJECTED)
    ]
    of_prompt = jnp.maximum(sum(both), 1.0)
    return jnp.where(batch.branches == PROMPT, of_prompt, 1.0) * (batch.pair_ids > 0)


def run_layers(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    tokens_and_positions: tuple[jax.Array, jax.Array],
    attend: LayerAttend,
    compute: Compute,
    dropout_key: jax.Array | None = None,
    token_weights_BT: jax.Array | None = None,
) -> tuple[jax.Array, Any, RouterLoad | None]:
    """Embeds tokens i32 `[B, T]` and runs all layers with the given attention.

    Layers stacked run in a scan; `unstacked` ones one after the other.

    Returns:
      `hidden_BTD` after the final norm; what `attend` collected, stacked `[L, ...]`, or in a list
      of unstacked layers; and the experts' load `[L, E]` over the tokens by weight (by default
      all), None without experts or of unstacked layers.
    """
    layers = params["layers"]
    apart = isinstance(layers, tuple)
    decoder = _decoder(config, params, layers[0] if apart else layers)
    tokens_BT, positions_BT = tokens_and_positions
    layer_rotation = layer_rotations(config, positions_BT)
    if token_weights_BT is None:
        token_weights_BT = jnp.ones(tokens_BT.shape)
    embedded_BTD = decoder.embed(tokens_BT, compute.dtype)
    if config.embed_scale != 1.0:
        # Rounded to the activations' dtype, as Gemma was trained.
        embedded_BTD *= jnp.asarray(config.embed_scale, compute.dtype)
    if config.learned_positions is not None:
        embedded_BTD += decoder.positions(positions_BT, compute.dtype)

    def run_layer(hidden_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        block, layer_lora, layer = inputs
        # Rows stay where they are; parameters come to them.
        hidden_BTD, block = shard_rows(hidden_BTD), compute.fetched(block)
        adapters = {}
        if layer_lora is not None:
            assert compute.lora is not None, "adapters need compute.lora for their scale"
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            adapters = layer_adapters(layer_lora, compute.lora, key)
        return block(
            hidden_BTD,
            layer_rotation(layer),
            lambda q, k, v: attend(q, k, v, layer),
            adapters,
            token_weights_BT,
        )

    if apart:
        hidden_BTD, collected = embedded_BTD, []
        for number, layer in enumerate(layers):
            block = _decoder(config, params, layer).layers
            layer_lora = lora and lora["layers"][number]
            hidden_BTD, (each, _) = run_layer(hidden_BTD, (block, layer_lora, number))
            collected.append(each)
        return decoder.norm(hidden_BTD), collected, None
    hidden_BTD, (collected, load) = jax.lax.scan(
        _rematerialised(run_layer, compute),
        shard_rows(embedded_BTD),
        (decoder.layers, lora and lora["layers"], jnp.arange(config.num_layers)),
    )
    return decoder.norm(hidden_BTD), collected, load


def _decoder(config: ModelConfig, params: Params, layers: Params) -> Decoder:
    structure = nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))
    return nnx.merge(structure, {**params, "layers": layers})


def unstacked(
    params: Params, lora: LoraParams | None, dtype: Any
) -> tuple[Params, LoraParams | None]:
    """The same model for decoding: a tuple of layers, matrices in the dtype they are used in.

    One token costs hardly more than reading the weights, so slicing layers out of the stack, or
    casting them, at each token would double it. Quantised kernels stay as they are.
    """

    def layers_of(tree: Any) -> tuple[Any, ...]:
        count = jax.tree.leaves(tree)[0].shape[0]
        return tuple(jax.tree.map(itemgetter(number), tree) for number in range(count))

    def cast(tree: Any) -> Any:
        def one(leaf: Any) -> Any:
            return leaf if is_quantized(leaf) or leaf.ndim < 2 else leaf.astype(dtype)

        return jax.tree.map(one, tree, is_leaf=is_quantized)

    apart = cast({**params, "layers": layers_of(params["layers"])})
    return apart, lora and cast({"layers": layers_of(lora["layers"])})


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


def layer_rotations(
    config: ModelConfig, positions_BT: jax.Array
) -> Callable[[Any], tuple[jax.Array, jax.Array] | None]:
    """Number of the layer → cosine and sine of its rotation; None where no layer has any."""
    attention = config.attention
    tables = [rotation(rope, attention.head_dim, positions_BT) for rope in attention.ropes]
    if not tables:
        return lambda layer: None
    if attention.layer_ropes is None:
        return lambda layer: tables[0]
    # Last, the rotation that changes nothing, of layers without one.
    tables.append((jnp.ones_like(tables[0][0]), jnp.zeros_like(tables[0][1])))
    numbers_L = jnp.array(
        [-1 if rope is None else attention.ropes.index(rope) for rope in attention.layer_ropes]
    )
    cos, sin = (jnp.stack(stack) for stack in zip(*tables, strict=True))
    return lambda layer: (cos[numbers_L[layer]], sin[numbers_L[layer]])


def attention_scale(config: ModelConfig) -> float:
    """Factor on the attention's scores."""
    scale = config.attention.scale
    return config.attention.head_dim**-0.5 if scale is None else scale


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

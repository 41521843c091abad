"""The decoder as pure functions of nested dicts of arrays.

Flax NNX modules (`layers.py`) declare what parameters there are; `run_layers` is the one place
where a dict becomes a module. Layers are stored stacked, `[L, ...]`, and run by `jax.lax.scan`.

    compute = Compute(jnp.float32, attention="dense", remat="none")
    params = init_params(config, jax.random.key(0), jnp.float32)
    hidden_BTD = forward(config, params, None, batch, compute).hidden_BTD
    logits_BTV = logits(config, params, hidden_BTD)
"""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.data.packing.batch import CHOSEN, PROMPT, REJECTED, PackedBatch
from jaxdpo.devices.sharding import shard_rows
from jaxdpo.model.attention.per_layer import LayerAttend, layer_attention
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.dtypes import cast_params
from jaxdpo.model.experts import RouterLoad, router_loss
from jaxdpo.model.groups import LayerGroup, layer_groups, of_group, of_layer
from jaxdpo.model.layers import Block, BlockOutputs, Decoder
from jaxdpo.model.lora import LoraParams, layer_adapters
from jaxdpo.model.neftune import embedding_noise
from jaxdpo.model.quantized import is_quantized
from jaxdpo.model.rope import query_scales, rotation

# A nested dict of arrays, such as {"embed": {"weight": ...}, "layers": {"attention": ...}, ...}.
Params = dict[str, Any]


class DecoderOutputs(NamedTuple):
    """A packed batch after all layers.

    Attributes:
      hidden_BTD: Hidden states after the final norm, in `Compute.dtype`.
      router_loss: The experts' load-balancing loss, f32 scalar; None without experts. It is over
        the tokens of the separate sequences: a shared prompt counts for both of its completions.
    """

    hidden_BTD: jax.Array
    router_loss: jax.Array | None


class LayerInputs(NamedTuple):
    """Tokens as the layers take them.

    Attributes:
      tokens_BT: i32 token ids.
      positions_BT: i32, counted from 0 in each sequence.
      weights_BT: f32, how much each token counts in the experts' load; None for 1.
      noise_BTD: f32, what is added to the embeddings; None for nothing.
    """

    tokens_BT: jax.Array
    positions_BT: jax.Array
    weights_BT: jax.Array | None = None
    noise_BTD: jax.Array | None = None


class LayerOutputs(NamedTuple):
    """All layers' outputs.

    Attributes:
      hidden_BTD: Hidden states after the final norm.
      collected: What `attend` returned beside its outputs, in a list of unstacked layers; None of
        stacked ones.
      load_L: The load of the layers with experts, `[L, E]` each; None without experts or of
        unstacked layers.
    """

    hidden_BTD: jax.Array
    collected: Any
    load_L: RouterLoad | None


def init_params(config: ModelConfig, key: jax.Array, dtype: Any) -> Params:
    """Draws random parameters: normal with deviation 0.02; norms one, biases zero.

    Args:
      config: Architecture.
      key: A random key.
      dtype: Of the parameters (`cast_params`); they are drawn in fp32 and rounded.
    """
    return cast_params(nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(params=key)))), dtype)


def abstract_params(config: ModelConfig, dtype: Any) -> Params:
    """Returns shapes and dtypes of the parameters, computing none."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def forward(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> DecoderOutputs:
    """Runs a packed batch through all layers and the final norm.

    Args:
      config: Architecture; static under jit.
      params: Parameters of any float dtype.
      lora: Adapters; None for the base model.
      batch: B rows of T tokens.
      compute: Dtype, attention and remat; static under jit.
      dropout_key: Key of the adapters' dropout and of the embeddings' noise; None, for neither,
        except in training.
    """
    attend = layer_attention(batch, compute.attention, config)
    weights_BT = None if config.mlp.experts is None else sequences_of_token(batch)
    noise_BTD = None
    if dropout_key is not None and compute.neftune_alpha > 0:
        # Layers fold in their own numbers, from 0.
        key = jax.random.fold_in(dropout_key, config.num_layers)
        noise_BTD = embedding_noise(batch, compute.neftune_alpha, config.hidden_size, key)
    inputs = LayerInputs(batch.tokens, batch.positions, weights_BT, noise_BTD)
    outputs = run_layers(config, params, lora, inputs, attend, compute, dropout_key)
    load_L = outputs.load_L
    return DecoderOutputs(outputs.hidden_BTD, None if load_L is None else router_loss(load_L))


def sequences_of_token(batch: PackedBatch) -> jax.Array:
    """Counts the separate sequences that each token stands in, f32 `[B, T]`; padding in none."""

    def has_branch(pair_ids_T: jax.Array, branches_T: jax.Array, branch: int) -> jax.Array:
        # f32 [T]: 1 at every token whose pair has a completion of this branch.
        of_branch_T = (branches_T == branch).astype(jnp.float32)
        # Segments are pair ids, which count from 1: one more for padding's id 0.
        segments = pair_ids_T.shape[0] + 1
        return jax.ops.segment_max(of_branch_T, pair_ids_T, segments)[pair_ids_T]

    both = [
        jax.vmap(has_branch, in_axes=(0, 0, None))(batch.pair_ids, batch.branches, branch)
        for branch in (CHOSEN, REJECTED)
    ]
    # A prompt without a completion in its segment still is one sequence.
    of_prompt_BT = jnp.maximum(sum(both), 1.0)
    return jnp.where(batch.branches == PROMPT, of_prompt_BT, 1.0) * (batch.pair_ids > 0)


def run_layers(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    inputs: LayerInputs,
    attend: LayerAttend,
    compute: Compute,
    dropout_key: jax.Array | None = None,
) -> LayerOutputs:
    """Embeds tokens and runs all layers with the given attention.

    Args:
      config: Architecture; static under jit.
      params: Parameters, whose stacked layers run in a scan, `unstacked` ones one by one.
      lora: Adapters, stacked as the parameters are; None for the base model.
      inputs: Tokens `[B, T]` and their positions.
      attend: Attention of a layer, by its number.
      compute: Dtype and remat; static under jit.
      dropout_key: Key of the adapters' dropout; None for none.
    """
    decoder = _around_layers(config, params)
    layer_rotation = layer_rotations(config, inputs.positions_BT)
    attend = _scaling_queries(config, inputs.positions_BT, attend)
    weights_BT = inputs.weights_BT
    weights_BT = jnp.ones(inputs.tokens_BT.shape) if weights_BT is None else weights_BT

    def run_layer(hidden_BTD: jax.Array, layer: Any) -> tuple[jax.Array, BlockOutputs]:
        block, layer_lora, number = layer
        # Rows stay where they are; parameters come to them.
        hidden_BTD, block = shard_rows(hidden_BTD), compute.fetched(block)
        adapters = {}
        if layer_lora is not None:
            assert compute.lora is not None, "adapters need compute.lora for their scale"
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            adapters = layer_adapters(layer_lora, compute.lora, key)
        with compute.exact_products():
            return block(
                hidden_BTD,
                layer_rotation(number),
                lambda q, k, v: attend(q, k, v, number),
                adapters,
                weights_BT,
            )

    hidden_BTD = shard_rows(_embedded(config, decoder, inputs, compute.dtype))
    collected, loads = [], []
    for group in layer_groups(config):
        if _is_unstacked(params["layers"]):
            for layer in _each_layer(config, params, lora, group):
                hidden_BTD, outputs = run_layer(hidden_BTD, layer)
                collected.append(outputs.collected)
            continue
        hidden_BTD, outputs = jax.lax.scan(
            _rematerialised(run_layer, compute), hidden_BTD, _stacked(config, params, lora, group)
        )
        if outputs.load is not None:
            loads.append(outputs.load)
    # The loads of all groups one after the other, `[L, E]`.
    load_L = jax.tree.map(lambda *each: jnp.concatenate(each), *loads) if loads else None
    return LayerOutputs(decoder.norm(hidden_BTD), collected or None, load_L)


def _scaling_queries(
    config: ModelConfig, positions_BT: jax.Array, attend: LayerAttend
) -> LayerAttend:
    """Returns an attention whose queries are scaled by their position, where the model does so."""
    scaling = config.attention.query_scaling
    if scaling is None:
        return attend
    # Made once, outside of the scan; the same for all heads and channels.
    scale_BT11 = query_scales(scaling, positions_BT)[:, :, None, None]
    return lambda q, k, v, layer: attend(q * scale_BT11.astype(q.dtype), k, v, layer)


def _embedded(config: ModelConfig, decoder: Decoder, inputs: LayerInputs, dtype: Any) -> jax.Array:
    """Returns the embeddings of tokens and, where the model learned some, of positions."""
    embedded_BTD = decoder.embed(inputs.tokens_BT, dtype)
    if config.embed_scale != 1.0:
        # Rounded to the activations' dtype, as Gemma was trained.
        embedded_BTD *= jnp.asarray(config.embed_scale, dtype)
    if decoder.positions is not None:
        embedded_BTD += decoder.positions(inputs.positions_BT, dtype)
    if inputs.noise_BTD is not None:
        embedded_BTD += inputs.noise_BTD.astype(dtype)
    return embedded_BTD


def _around_layers(config: ModelConfig, params: Params) -> Decoder:
    """Makes a module of the parameters before and after the layers."""

    def declared() -> Decoder:
        return Decoder(config, nnx.Rngs(params=0), layers=False)

    structure = nnx.graphdef(nnx.eval_shape(declared))
    return nnx.merge(structure, {name: params[name] for name in params if name != "layers"})


def _block(config: ModelConfig, group: LayerGroup, parts: Params) -> Block:
    """Makes a module of the parameters of one layer of a group, or of all of them stacked."""

    def declared() -> Block:
        return Block(config, nnx.Rngs(params=0), {group.kind})

    # NNX looks at the names of the arrays, and not at their axes.
    structure = nnx.graphdef(nnx.eval_shape(declared))
    return nnx.merge(structure, parts)


def _stacked(
    config: ModelConfig, params: Params, lora: LoraParams | None, group: LayerGroup
) -> tuple[Block, LoraParams | None, jax.Array]:
    """Returns a group's layers, their adapters and their numbers, stacked for a scan."""
    block = _block(config, group, of_group(config, params["layers"], group))
    adapters = lora and of_group(config, lora["layers"], group)
    return block, adapters, jnp.arange(group.start, group.stop)


def _each_layer(
    config: ModelConfig, params: Params, lora: LoraParams | None, group: LayerGroup
) -> Iterator[tuple[Block, LoraParams | None, int]]:
    """Yields the same of each layer of a group by itself, where they are unstacked."""
    for number in range(group.start, group.stop):
        block = _block(config, group, of_layer(config, params["layers"], number))
        yield block, lora and of_layer(config, lora["layers"], number), number


def _is_unstacked(layers: Params) -> bool:
    """Tells whether each part of the layers is a tuple of them."""
    return isinstance(next(iter(layers.values())), tuple)


def unstacked(
    params: Params, lora: LoraParams | None, dtype: Any
) -> tuple[Params, LoraParams | None]:
    """Returns the same model for decoding: matrices in the dtype of use, layers in tuples.

    One token costs hardly more than reading the weights, so slicing layers out of the stack, or
    casting them, at each token would double it. Quantised kernels stay as they are.

    Args:
      params: Parameters with stacked layers.
      lora: Adapters with stacked layers, or None.
      dtype: Of the activations.
    """
    return unstacked_tree(params, dtype), lora and unstacked_tree(lora, dtype)


def unstacked_tree(tree: Params, dtype: Any) -> Params:
    """Returns parameters, or adapters, as `unstacked` does both.

    Args:
      tree: Arrays with stacked layers under `layers`.
      dtype: Of the activations.
    """
    layers = {}
    for part, stacked in tree["layers"].items():
        # The layers that have this part; most parts are in all of them.
        count = jax.tree.leaves(stacked)[0].shape[0]
        layers[part] = tuple(jax.tree.map(itemgetter(at), stacked) for at in range(count))

    def cast(leaf: Any) -> Any:
        return leaf if is_quantized(leaf) or leaf.ndim < 2 else leaf.astype(dtype)

    return jax.tree.map(cast, {**tree, "layers": layers}, is_leaf=is_quantized)


def _rematerialised(run_layer: Callable, compute: Compute) -> Callable:
    if compute.remat == "none":
        return run_layer
    # Products with a batch axis are attention's scores, as large as the activations that remat is
    # to save; those without one are the products with parameters.
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = products if compute.remat == "dots" else None
    # In a scan the passes can't share work by accident, so the guard against that only costs.
    return jax.checkpoint(run_layer, policy=policy, prevent_cse=False)


def layer_rotations(
    config: ModelConfig, positions_BT: jax.Array
) -> Callable[[Any], tuple[jax.Array, jax.Array] | None]:
    """Returns a function from a layer's number to cosine and sine of its rotation, or None.

    The tables are made once, outside of the scan, for each different `RopeConfig`.
    """
    attention = config.attention
    tables = [rotation(rope, attention.head_dim, positions_BT) for rope in attention.ropes]
    if not tables:
        return lambda layer: None
    if attention.layer_ropes is None:
        return lambda layer: tables[0]
    # Last, the rotation that changes nothing, of layers without one.
    tables.append((jnp.ones_like(tables[0][0]), jnp.zeros_like(tables[0][1])))
    table_L = jnp.array(
        [-1 if rope is None else attention.ropes.index(rope) for rope in attention.layer_ropes]
    )
    cos_sin = tuple(jnp.stack(stack) for stack in zip(*tables, strict=True))
    # Indexed by a number that the scan carries, so that all layers are one program.
    return lambda layer: (cos_sin[0][table_L[layer]], cos_sin[1][table_L[layer]])


def head_weight(config: ModelConfig, params: Params) -> jax.Array:
    """Returns the matrix from hidden states to logits, `[D, V]`: if tied, the embedding's."""
    return params["embed"]["weight"].T if config.tied_head else params["head"]["kernel"]


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Returns logits over the vocabulary, f32 `[..., V]`.

    Args:
      config: Architecture: tied head, scale and soft cap.
      params: Parameters.
      hidden: Hidden states after the final norm, `[..., D]`.
    """
    weight_DV = head_weight(config, params).astype(hidden.dtype)
    # Products of bf16 are summed in fp32 and stay so: differences of logits are what is learned.
    # Those of fp32 are taken of all their bits, on devices too that would round them.
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
    scores = jnp.matmul(hidden, weight_DV, precision=precision, preferred_element_type=jnp.float32)
    scores *= config.logit_scale
    if config.logit_softcap is None:
        return scores
    return config.logit_softcap * jnp.tanh(scores / config.logit_softcap)

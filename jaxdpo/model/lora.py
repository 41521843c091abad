"""LoRA: low-rank terms added to linear layers (https://arxiv.org/abs/2106.09685).

The adapters are a second nested dict, shaped like the part of the parameters that they adapt:
`layers/attention/q/kernel [L, D, H·d]` has `layers/attention/q/{a [L, D, r], b [L, r, H·d]}`. They
hold all that trains and nothing else, so `lora=None` is the base model exactly.

Adapters of DoRA (https://arxiv.org/abs/2402.09353) have a third array, `m [L, H·d]`: the length of
each output's column of weights, trained by itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import BaseModel, Field

from jaxdpo.errors import UserError, nearest
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.groups import layers_with, mlp_kinds
from jaxdpo.model.layers import Block
from jaxdpo.model.mlp import Adapter
from jaxdpo.model.quantized import BaseKind, is_quantized, product

LoraParams = dict[str, Any]

ALL_LINEAR = "all-linear"


class LoraConfig(BaseModel, frozen=True, extra="forbid"):
    """Low-rank adapters on the layers' linear maps."""

    rank: int = Field(default=16, gt=0, description="Rank of each adapter.")
    alpha: float = Field(
        default=32.0, gt=0, description="The adapters' term is scaled by alpha / rank."
    )
    targets: tuple[str, ...] = Field(
        default=(ALL_LINEAR,),
        min_length=1,
        description="Which maps: of q, k, v, o, gate, up, down; or all-linear.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Of the adapters' inputs, in training."
    )
    use_rslora: bool = Field(
        default=False,
        description="Scale by alpha / √rank (rsLoRA), so that a higher rank learns no slower.",
    )
    use_dora: bool = Field(
        default=False,
        description="Train the length of each output's weights by itself, and with the adapters "
        "their direction (DoRA).",
    )
    base: BaseKind = Field(
        default="full",
        description="The layers' matrices beneath the adapters: as loaded, or in 8.5 (int8) or 4.5 "
        "(nf4) bits a weight.",
    )

    @property
    def scale(self) -> float:
        """Factor on `x @ a @ b`.

        With rsLoRA (https://arxiv.org/abs/2312.03732) the root of the rank: the gradients of `a`
        and `b` then neither vanish nor grow with the rank.
        """
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def init_lora(
    config: ModelConfig,
    lora_config: LoraConfig,
    key: jax.Array,
    params: dict[str, Any] | None = None,
) -> LoraParams:
    """Makes fresh adapters, fp32: `a` uniform within ±1/√inputs, as PEFT has it; `b` zero.

    Their term is 0 at first, so that training starts from the base model exactly.

    Args:
      config: Architecture of the base.
      lora_config: Rank and targets.
      key: A random key.
      params: The base's parameters, which DoRA's lengths are those of at first; None where shapes
        alone are of interest, and for other adapters.

    Raises:
      UserError: A target is not a linear map of this architecture.
    """
    kernels = _target_kernels(config, lora_config.targets)
    keys = iter(jax.random.split(key, len(kernels)))
    layers: dict[str, Any] = {}
    for (part, name), (inputs, outputs) in kernels.items():
        bound, count = inputs**-0.5, len(layers_with(config, part))
        a_shape, b_shape = ((count, inputs, lora_config.rank), (count, lora_config.rank, outputs))
        a_LDr = jax.random.uniform(next(keys), a_shape, jnp.float32, -bound, bound)
        pair = {"a": a_LDr, "b": jnp.zeros(b_shape, jnp.float32)}
        if lora_config.use_dora:
            # Without the base's weights not a number, so that no run can start from it unnoticed.
            pair["m"] = jnp.full((count, outputs), jnp.nan, jnp.float32)
            if params is not None:
                pair["m"] = column_lengths(params["layers"][part][name]["kernel"])
        layers.setdefault(part, {})[name] = pair
    return {"layers": layers}


def _target_kernels(
    config: ModelConfig, targets: tuple[str, ...]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns the targeted linear maps of a block: (part, name) → (inputs, outputs)."""
    kinds = set(mlp_kinds(config))
    block = nnx.eval_shape(lambda: Block(config, nnx.Rngs(params=0), kinds))
    # Norms are arrays without a kernel, routers have a weight and experts a part of their own: none
    # of these is adapted. Nor are the MLPs of layers without experts: in a model with experts PEFT
    # takes gate_proj, up_proj and down_proj for maps of the experts, so no file could hold them.
    kernels = {
        (part, name): linear["kernel"].shape
        for part, linears in nnx.to_pure_dict(nnx.state(block)).items()
        if part != "dense_mlp"
        for name, linear in linears.items()
        if isinstance(linear, dict) and "kernel" in linear
    }
    known = [name for _, name in kernels]
    for target in targets:
        if target not in (*known, ALL_LINEAR):
            raise UserError(
                f"lora.targets: {target!r} is no linear map of this model"
                f"{nearest(target, [*known, ALL_LINEAR])}. "
                f"There are {', '.join(sorted(known))}, and {ALL_LINEAR} for all of them."
            )
    return {
        path: shape
        for path, shape in kernels.items()
        if ALL_LINEAR in targets or path[1] in targets
    }


def _is_adapter(node: Any) -> bool:
    return "a" in node and "b" in node


def layer_adapters(
    layer_lora: LoraParams, lora_config: LoraConfig, dropout_key: jax.Array | None
) -> dict[str, Any]:
    """Returns the terms that one layer's linear maps add, nested as the layer is.

    Args:
      layer_lora: One layer's part of `lora["layers"]`: `{"attention": {"q": {"a", "b"}}}`.
      lora_config: Scale and dropout.
      dropout_key: Key of this layer's dropout; None for none.
    """
    pairs, structure = jax.tree.flatten(layer_lora, is_leaf=_is_adapter)
    keys: Sequence[jax.Array | None] = [None] * len(pairs)
    if dropout_key is not None and lora_config.dropout > 0:
        keys = list(jax.random.split(dropout_key, len(pairs)))
    terms = [_adapter(pair, lora_config, key) for pair, key in zip(pairs, keys, strict=True)]
    return jax.tree.unflatten(structure, terms)


def _adapter(pair: dict[str, jax.Array], config: LoraConfig, key: jax.Array | None) -> Adapter:
    def term(x: jax.Array, y: jax.Array, kernel: Any) -> jax.Array:
        # x [..., inputs] @ a [inputs, r] @ b [r, outputs]: through the rank first, since a @ b is a
        # matrix as large as the kernel.
        if key is not None:
            # Of the adapter's input alone: the base model's path has no dropout.
            kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
            x = jnp.where(kept, x / (1 - config.dropout), 0)
        low_rank = (x @ pair["a"].astype(x.dtype)) * config.scale @ pair["b"].astype(x.dtype)
        if "m" not in pair:
            return low_rank
        # DoRA replaces x W by x V · m / ‖V‖ with V = W + s A B, so what it adds to x W is
        # (m / ‖V‖ − 1) x W + m / ‖V‖ · s x A B.
        if key is not None:
            y = product(x, kernel)
        ratio = _stretch(kernel, pair, config.scale).astype(x.dtype)
        ratio = jnp.broadcast_to(ratio, y.shape)
        return (ratio - 1) * y + ratio * low_rank

    return term


def column_lengths(kernel: Any, delta: Any = 0.0) -> jax.Array:
    """Computes the Euclidean length of each output's weights, f32 `[..., outputs]`.

    Args:
      kernel: `[..., inputs, outputs]`, an array or quantized.
      delta: What is added to it, of the same shape.
    """
    if is_quantized(kernel):
        kernel = kernel.dequantized(jnp.float32)
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32) + delta), axis=-2))


def _stretch(kernel: Any, pair: dict[str, jax.Array], scale: float) -> jax.Array:
    """Computes m / ‖W + s A B‖ of DoRA, f32 `[..., outputs]`."""
    # The lengths are constants to the gradient (section 4.3 of the paper): to go through them too
    # costs memory and gains nothing.
    delta = jax.lax.stop_gradient(_product(pair, scale))
    return pair["m"] / jax.lax.stop_gradient(column_lengths(kernel, delta))


def _product(pair: dict[str, jax.Array], scale: float) -> jax.Array:
    # Over the rank r, a layer at a time. "highest": a GPU would multiply fp32 in TF32 otherwise.
    return scale * jnp.einsum("...ir,...ro->...io", pair["a"], pair["b"], precision="highest")


def merged_kernel(kernel: jax.Array, pair: dict[str, jax.Array], scale: float) -> jax.Array:
    """Computes `kernel + scale · a @ b` in fp32, rounded once, to the kernel's dtype.

    Args:
      kernel: `[..., inputs, outputs]`, with all inputs of each output.
      pair: The adapter: `a` `[..., inputs, r]` and `b` `[..., r, outputs]`, and of DoRA `m`
        `[..., outputs]`, the lengths that the sum's columns are brought to.
      scale: Factor on `a @ b`.
    """
    merged = kernel.astype(jnp.float32) + _product(pair, scale)
    if "m" in pair:
        ratio = pair["m"] / column_lengths(merged)
        merged *= ratio[..., None, :]
    return merged.astype(kernel.dtype)


def merge_lora(
    params: dict[str, Any],
    lora: LoraParams,
    scale: float,
    merge: Callable[[Any, dict[str, Any], float], Any] = merged_kernel,
) -> dict[str, Any]:
    """Adds adapters into the kernels and returns the parameters with them.

    Args:
      params: Parameters.
      lora: Adapters.
      scale: Factor on the adapters' terms.
      merge: Adds one adapter.
    """
    # Copies of the dicts on the way to a kernel: the parameters given stay as they were.
    merged = {**params, "layers": dict(params["layers"])}
    for part, linears in lora["layers"].items():
        merged["layers"][part] = dict(params["layers"][part])
        for name, pair in linears.items():
            linear = params["layers"][part][name]
            kernel = merge(linear["kernel"], pair, scale)
            merged["layers"][part][name] = {**linear, "kernel": kernel}
    return merged

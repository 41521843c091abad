"""Linear maps with adapters, and the MLP."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.model.config import ModelConfig
from jaxdpo.model.quantized import product

# What an adapter adds to a linear layer's output: (x [..., in], x @ kernel, kernel) → [..., out].
Adapter = Callable[[jax.Array, jax.Array, Any], jax.Array]
Adapters = Mapping[str, Any]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu-tanh": partial(jax.nn.gelu, approximate=True),
    # https://arxiv.org/abs/2109.08668
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}

_normal = nnx.initializers.normal(0.02)


class Linear(nnx.Module):
    """`x @ kernel + bias`, plus the adapter's term."""

    def __init__(self, inputs: int, outputs: int, bias: bool, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array, adapter: Adapter | None = None) -> jax.Array:
        # x [..., inputs], y [..., outputs].
        kernel = self.kernel[...]
        product_of_base = y = product(x, kernel)
        if self.bias is not None:
            # Broadcast by name: the tests forbid implicit promotion of rank, which hides mistakes.
            y += jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)
        if adapter is not None:
            y += adapter(x, product_of_base, kernel)
        return y


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))` (https://arxiv.org/abs/2002.05202), or `down(act(up(x)))`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, size: int | None = None):
        width, bias = config.hidden_size, config.mlp.bias
        middle = size or config.mlp.intermediate_size
        self.activation = config.mlp.activation
        self.gate = Linear(width, middle, bias, rngs) if config.mlp.gated else None
        self.up = Linear(width, middle, bias, rngs)
        self.down = Linear(middle, width, bias, rngs)

    def __call__(self, x_BTD: jax.Array, adapters: Adapters) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        up_BTF = self.up(x_BTD, adapters.get("up"))
        if self.gate is None:
            middle_BTF = activation(up_BTF)
        else:
            middle_BTF = activation(self.gate(x_BTD, adapters.get("gate"))) * up_BTF
        return self.down(middle_BTF, adapters.get("down"))

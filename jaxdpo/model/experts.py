"""A mixture of experts: every token goes to its likeliest experts, and none is ever dropped."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.model.config import ModelConfig
from jaxdpo.model.quantized import product

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu-tanh": partial(jax.nn.gelu, approximate=True),
    # https://arxiv.org/abs/2109.08668
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}

_normal = nnx.initializers.normal(0.02)


class RouterLoad(NamedTuple):
    """Spread of a layer's tokens over E experts, each token counted by its weight.

    Attributes:
      chosen_E: f32, share of the tokens that went to each expert; they sum to the experts a token.
      probability_E: f32, mean probability that the router gave each expert.
    """

    chosen_E: jax.Array
    probability_E: jax.Array


def router_loss(load_L: RouterLoad) -> jax.Array:
    """Computes the load-balancing loss over all layers: E · Σ_e share_e · probability_e.

    Its smallest value is the number of experts a token, where the load is even. Shares and
    probabilities are means over the tokens of all layers together, as in `transformers` (Switch
    Transformer, https://arxiv.org/abs/2101.03961, equation 4).

    Args:
      load_L: Loads stacked `[L, E]`.
    """
    chosen_E, probability_E = load_L.chosen_E.mean(0), load_L.probability_E.mean(0)
    # Choosing is not differentiable; the gradient lowers the probability of crowded experts.
    return chosen_E.shape[0] * jnp.sum(jax.lax.stop_gradient(chosen_E) * probability_E)


class ExpertLinear(nnx.Module):
    """A kernel for each expert, `[E, inputs, outputs]`."""

    def __init__(self, experts: int, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_normal(rngs.params(), (experts, inputs, outputs)))

    def __call__(self, x_ND: jax.Array, sizes_E: jax.Array) -> jax.Array:
        """Multiplies N tokens sorted by expert, of which expert e has the next `sizes_E[e]`."""
        return product(x_ND, self.kernel[...], sizes_E)


class Experts(nnx.Module):
    """Gated MLPs, one an expert."""

    def __init__(self, config: ModelConfig, experts: int, rngs: nnx.Rngs):
        width, middle = config.hidden_size, config.mlp.intermediate_size
        self.activation = config.mlp.activation
        self.gate = ExpertLinear(experts, width, middle, rngs)
        self.up = ExpertLinear(experts, width, middle, rngs)
        self.down = ExpertLinear(experts, middle, width, rngs)

    def __call__(self, x_ND: jax.Array, sizes_E: jax.Array) -> jax.Array:
        gate_NF, up_NF = self.gate(x_ND, sizes_E), self.up(x_ND, sizes_E)
        return self.down(ACTIVATIONS[self.activation](gate_NF) * up_NF, sizes_E)


class SparseMLP(nnx.Module):
    """The weighted sum of the `per_token` experts that the router finds likeliest."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        assert config.mlp.experts is not None
        self.shape = config.mlp.experts
        experts = self.shape.num_experts
        self.router = nnx.Dict(
            weight=nnx.Param(_normal(rngs.params(), (config.hidden_size, experts)))
        )
        self.experts = Experts(config, experts, rngs)

    def __call__(
        self, x_BTD: jax.Array, token_weights_BT: jax.Array
    ) -> tuple[jax.Array, RouterLoad]:
        """Returns outputs `[B, T, D]` and the load, from which tokens of weight 0 are left out."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NE = x_ND @ self.router["weight"][...].astype(x_ND.dtype)
        # In fp32: two experts whose probabilities differ by less than bf16 tells apart would be
        # chosen otherwise than in transformers.
        probability_NE = jax.nn.softmax(logits_NE.astype(jnp.float32), axis=-1)
        top_Nk, expert_Nk = jax.lax.top_k(probability_NE, self.shape.per_token)
        if self.shape.normalized:
            top_Nk /= top_Nk.sum(axis=-1, keepdims=True)
        y_ND = self._dispatch(x_ND, top_Nk.astype(x_ND.dtype), expert_Nk)
        # A row of `chosen_NE` has a 1 for each expert that the token goes to.
        chosen_NE = jax.nn.one_hot(expert_Nk, self.shape.num_experts).sum(1)
        weights_N = token_weights_BT.reshape(-1).astype(jnp.float32)
        # Of a microbatch that is all padding the load is 0, not NaN.
        weights_N /= jnp.maximum(weights_N.sum(), 1.0)
        load = RouterLoad(weights_N @ chosen_NE, weights_N @ probability_NE)
        return y_ND.reshape(x_BTD.shape), load

    def _dispatch(self, x_ND: jax.Array, top_Nk: jax.Array, expert_Nk: jax.Array) -> jax.Array:
        """Sorts (token, expert) pairs by expert, runs the experts, sorts back and sums.

        So every token goes to its experts, however crowded they are: there is no capacity.
        """
        # M = N · k pairs; pair m is of token m // k. Sorted by expert, each expert's are a block.
        count = expert_Nk.shape[-1]
        order_M = jnp.argsort(expert_Nk.reshape(-1), stable=True)
        sizes_E = jnp.bincount(expert_Nk.reshape(-1), length=self.shape.num_experts)
        sorted_MD = self.experts(x_ND[order_M // count], sizes_E.astype(jnp.int32))
        # The inverse of a permutation is its argsort: back in the order of tokens.
        y_NkD = sorted_MD[jnp.argsort(order_M)].reshape(*expert_Nk.shape, -1)
        # Each token's k outputs, weighted by the router.
        return jnp.einsum("nkd,nk->nd", y_NkD, top_Nk)

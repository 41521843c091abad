"""A mixture of experts: every token goes to its likeliest experts, and none is ever dropped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdpo.model.config import ModelConfig
from jaxdpo.model.mlp import ACTIVATIONS, MLP
from jaxdpo.model.quantized import product

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


class Chosen(NamedTuple):
    """The router's choice for N tokens.

    Attributes:
      scores_NE: f32, what the router gave each expert.
      weights_Nk: f32, factors on the outputs of the chosen experts.
      expert_Nk: i32, numbers of the chosen experts.
    """

    scores_NE: jax.Array
    weights_Nk: jax.Array
    expert_Nk: jax.Array


class Router(nnx.Module):
    """Chooses `per_token` experts for each token."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        assert config.mlp.experts is not None
        self.shape = config.mlp.experts
        experts = self.shape.num_experts
        self.weight = nnx.Param(_normal(rngs.params(), (config.hidden_size, experts)))
        self.correction = nnx.Param(jnp.zeros(experts)) if self.shape.correction else None

    def __call__(self, x_ND: jax.Array) -> Chosen:
        shape, weight_DE = self.shape, self.weight[...]
        # Scores in fp32: two experts whose scores differ by less than bf16 tells apart would be
        # chosen otherwise than in transformers, which multiplies in fp32 too before sigmoids.
        if shape.score == "softmax":
            logits_NE = (x_ND @ weight_DE.astype(x_ND.dtype)).astype(jnp.float32)
            scores_NE = jax.nn.softmax(logits_NE, axis=-1)
        else:
            logits_NE = x_ND.astype(jnp.float32) @ weight_DE.astype(jnp.float32)
            scores_NE = jax.nn.sigmoid(logits_NE)
        choice_NE = scores_NE
        if self.correction is not None:
            # It balances the load and says nothing of how good an expert is, so the outputs are
            # weighted without it, and it gets no gradient.
            added_E = jax.lax.stop_gradient(self.correction[...]).astype(jnp.float32)
            choice_NE += jnp.broadcast_to(added_E, scores_NE.shape)
        if shape.groups > 1:
            choice_NE = self._in_best_groups(choice_NE)
        weights_Nk, expert_Nk = jax.lax.top_k(choice_NE, shape.per_token)
        if choice_NE is not scores_NE:
            weights_Nk = jnp.take_along_axis(scores_NE, expert_Nk, axis=-1)
        if shape.normalized:
            # Sigmoids may all be 0 in fp32, unlike probabilities; the small number is the model's.
            least = 0.0 if shape.score == "softmax" else 1e-20
            weights_Nk /= weights_Nk.sum(axis=-1, keepdims=True) + least
        if shape.scale != 1.0:
            weights_Nk *= shape.scale
        return Chosen(scores_NE, weights_Nk, expert_Nk)

    def _in_best_groups(self, choice_NE: jax.Array) -> jax.Array:
        """Returns −∞ for the experts outside of each token's best groups.

        A group is as good as its two best experts together.
        """
        # N tokens, g groups of e experts.
        choice_Nge = choice_NE.reshape(choice_NE.shape[0], self.shape.groups, -1)
        best_two = jax.lax.top_k(choice_Nge, min(2, choice_Nge.shape[-1]))[0]
        group_Nk = jax.lax.top_k(best_two.sum(-1), self.shape.groups_per_token)[1]
        kept_Ng = jax.nn.one_hot(group_Nk, self.shape.groups).sum(1) > 0
        return jnp.where(kept_Ng[:, :, None], choice_Nge, -jnp.inf).reshape(choice_NE.shape)


class SparseMLP(nnx.Module):
    """The weighted sum of the experts that the router chooses, and an MLP beside them if any."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        assert config.mlp.experts is not None
        self.shape = config.mlp.experts
        shared = self.shape.shared
        self.router = Router(config, rngs)
        self.experts = Experts(config, self.shape.num_experts, rngs)
        self.shared = None if shared is None else MLP(config, rngs, shared.intermediate_size)
        self.shared_gate = (
            nnx.Dict(weight=nnx.Param(_normal(rngs.params(), (config.hidden_size, 1))))
            if shared is not None and shared.gated
            else None
        )

    def __call__(
        self, x_BTD: jax.Array, token_weights_BT: jax.Array
    ) -> tuple[jax.Array, RouterLoad]:
        """Returns outputs `[B, T, D]` and the load, from which tokens of weight 0 are left out."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        scores_NE, weights_Nk, expert_Nk = self.router(x_ND)
        y_ND = self._dispatch(x_ND, weights_Nk.astype(x_ND.dtype), expert_Nk)
        if self.shared is not None:
            y_ND += self._shared_output(x_ND)
        # A row of `chosen_NE` has a 1 for each expert that the token goes to.
        chosen_NE = jax.nn.one_hot(expert_Nk, self.shape.num_experts).sum(1)
        if self.shape.score == "sigmoid":
            # The load is told by shares that sum to 1, as probabilities do.
            scores_NE /= scores_NE.sum(-1, keepdims=True) + 1e-20
        weights_N = token_weights_BT.reshape(-1).astype(jnp.float32)
        # Of a microbatch that is all padding the load is 0, not NaN.
        weights_N /= jnp.maximum(weights_N.sum(), 1.0)
        load = RouterLoad(weights_N @ chosen_NE, weights_N @ scores_NE)
        return y_ND.reshape(x_BTD.shape), load

    def _shared_output(self, x_ND: jax.Array) -> jax.Array:
        assert self.shared is not None
        y_ND = self.shared(x_ND, {})
        if self.shared_gate is None:
            return y_ND
        # One number for each token.
        gate_N1 = jax.nn.sigmoid(x_ND @ self.shared_gate["weight"][...].astype(x_ND.dtype))
        return gate_N1 * y_ND

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

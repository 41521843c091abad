"""The directions of the update rules by name, before weight decay and the learning rate.

They are optax's. Parameters are stacked over layers, `[L, ...]`, and a rule that looks at a matrix
as a whole has to see each layer's apart.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdpo.training.optimizer_config import OptimizerConfig

# An update of this root mean square is about as large as AdamW's are, so that AdamW's learning
# rates and weight decay serve Muon (Liu et al. 2025, section 2.2).
_MUON_RMS = 0.2


def direction_of(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns what makes gradients into the direction of an update, uphill."""
    return _DIRECTIONS[config.name](config)


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(
        config.beta1, config.beta2, config.epsilon, mu_dtype=jnp.dtype(config.mean_dtype)
    )


def _lion(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns Lion's direction, the sign of a mean of gradients (Chen et al. 2023, program 1)."""
    return optax.scale_by_lion(config.beta1, config.beta2, mu_dtype=jnp.dtype(config.mean_dtype))


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns Adafactor's direction (Shazeer & Stern 2018, algorithm 4), for a rate that is given.

    Without a mean of gradients, and without the factor of a parameter's own size, in which adapters
    that begin at zero would hardly move; so `transformers` sets it up, too.
    """
    del config
    return _each_layer(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)))


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns Muon for the matrices of the layers (Jordan et al. 2024), AdamW for what is left.

    An embedding's or a head's rows are words, not directions of a linear map, so its authors leave
    them to AdamW, with norms and biases.
    """
    mean_dtype = jnp.dtype(config.mean_dtype)
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.beta1, mu_dtype=mean_dtype, weight_dimension_numbers=_trailing_axes
        ),
        optax.stateless(_as_large_as_adamw),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config)}, _muon_or_adamw)


def _schedule_free(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns AdamW's direction without the mean of gradients, whose part the average takes."""
    return optax.scale_by_rms(config.beta2, config.epsilon, eps_in_sqrt=False, bias_correction=True)


_DIRECTIONS = {
    "adamw": _adamw,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
    "schedule_free": _schedule_free,
}


def _each_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a rule to each layer by itself.

    Adafactor would otherwise take the root mean square of an update over all layers at once, and in
    a deep and narrow model average squares over layers in place of channels.
    """

    def init(params: Any) -> Any:
        return {"layers": jax.vmap(rule.init)(params["layers"]), "rest": rule.init(_rest(params))}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        layers, layers_state = jax.vmap(rule.update)(
            updates["layers"], state["layers"], params["layers"]
        )
        rest: Any
        rest, rest_state = rule.update(_rest(updates), state["rest"], _rest(params))
        return {**rest, "layers": layers}, {"layers": layers_state, "rest": rest_state}

    return optax.GradientTransformation(init, update)


def _rest(tree: Any) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name != "layers"}


def _trailing_axes(params: Any) -> Any:
    """Names inputs and outputs of each matrix, `[..., inputs, outputs]`; the rest are stacked."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), params)


def _as_large_as_adamw(updates: Any, params: Any) -> Any:
    """Scales orthogonal matrices, whose root mean square is 1/√(the longer side)."""
    del params
    return jax.tree.map(lambda leaf: leaf * _MUON_RMS * max(leaf.shape[-2:]) ** 0.5, updates)


def _muon_or_adamw(params: Any) -> Any:
    """Labels each array with the rule that it learns by."""

    def label(path: Any, _: Any) -> str:
        is_matrix = path[0].key == "layers" and path[-1].key in ("kernel", "a", "b")
        return "muon" if is_matrix else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)

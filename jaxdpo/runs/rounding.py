"""The share of what training learned that is lost where weights are rounded to be written."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.devices.sharding import shardings_for
from jaxdpo.hub.policy import Policy
from jaxdpo.hub.read import on_devices
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import merged_kernel
from jaxdpo.model.quantized import is_quantized


def rounding_loss(policy: Policy, dtype: Any) -> float:
    """Computes ‖written − exact‖ / ‖exact − base‖ over the kernels that adapters change.

    A weight in bfloat16 has eight significant bits. What an adapter adds to it is often less than
    half of the last one, and is then rounded away, so that a merged model may have lost most of
    what its adapters learned, though each of its weights is as near as can be.

    Args:
      policy: A model with adapters.
      dtype: Dtype that the merged weights are written in.

    Returns:
      The share, 0 for a model without adapters, and for adapters that have learned nothing.
    """
    if policy.lora is None:
        return 0.0
    assert policy.lora_config is not None
    # Squares are summed over kernels and the root is taken once: a norm over all of them.
    scale, lost, learned = policy.lora_config.scale, 0.0, 0.0
    for part, linears in policy.lora["layers"].items():
        for name, pair in linears.items():
            kernel = policy.params["layers"][part][name]["kernel"]
            if is_quantized(kernel):
                kernel = kernel.dequantized(jnp.float32)
            # A kernel at a time: the whole model in fp32 may not fit beside itself.
            of_kernel = _squares_merged(kernel, pair, scale, jnp.dtype(dtype))
            lost, learned = lost + float(of_kernel[0]), learned + float(of_kernel[1])
    return (lost / learned) ** 0.5 if learned else 0.0


def rounding_loss_of_all(trained: Params, base: Params, dtype: Any, mesh: Mesh) -> float:
    """Computes the same share over all parameters, where all of them trained.

    Args:
      trained: The parameters, in fp32.
      base: Those that training began with, perhaps left in their files.
      dtype: Dtype that they are written in.
      mesh: The mesh.

    Returns:
      The share, 0 if nothing changed.
    """
    lost, learned = 0.0, 0.0
    places = jax.tree.leaves(shardings_for(trained, mesh))
    leaves = zip(jax.tree.leaves(trained), jax.tree.leaves(base), places, strict=True)
    for exact, before, place in leaves:
        # A parameter at a time, because the base need not fit beside what was trained.
        [before] = jax.tree.leaves(on_devices({"leaf": before}, {"leaf": place}))
        of_leaf = _squares(exact, before, jnp.dtype(dtype))
        lost, learned = lost + float(of_leaf[0]), learned + float(of_leaf[1])
    return (lost / learned) ** 0.5 if learned else 0.0


@functools.partial(jax.jit, static_argnums=(2, 3))
def _squares_merged(kernel: jax.Array, pair: dict[str, jax.Array], scale: float, dtype: Any) -> Any:
    base = kernel.astype(jnp.float32)
    return _squares(merged_kernel(base, pair, scale), base, dtype)


@functools.partial(jax.jit, static_argnums=2)
def _squares(exact: jax.Array, base: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    # Not `astype` there and back, which XLA leaves out of a fused program as excess precision.
    form = jnp.finfo(dtype)
    written = jax.lax.reduce_precision(exact, form.nexp, form.nmant)
    lost = jnp.sum(jnp.square(written - exact))
    return lost, jnp.sum(jnp.square(exact - base.astype(jnp.float32)))

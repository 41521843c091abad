"""The share of what adapters learned that is lost where they are merged into rounded weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.hub.policy import Policy
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
    scale, lost, learned = policy.lora_config.scale, 0.0, 0.0
    for part, linears in policy.lora["layers"].items():
        for name, pair in linears.items():
            kernel = policy.params["layers"][part][name]["kernel"]
            if is_quantized(kernel):
                kernel = kernel.dequantized(jnp.float32)
            # A kernel at a time: the whole model in fp32 may not fit beside itself.
            of_kernel = _squares(kernel, pair, scale, jnp.dtype(dtype))
            lost, learned = lost + float(of_kernel[0]), learned + float(of_kernel[1])
    return (lost / learned) ** 0.5 if learned else 0.0


@functools.partial(jax.jit, static_argnums=(2, 3))
def _squares(kernel: jax.Array, pair: dict[str, jax.Array], scale: float, dtype: Any) -> Any:
    base = kernel.astype(jnp.float32)
    exact = merged_kernel(base, pair, scale)
    written = exact.astype(dtype).astype(jnp.float32)
    return jnp.sum(jnp.square(written - exact)), jnp.sum(jnp.square(exact - base))

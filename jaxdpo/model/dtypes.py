"""The dtype of each parameter, where a model has one for all."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.devices.sharding import path_name


def stays_fp32(name: str) -> bool:
    """Tells whether a parameter is kept in fp32 whatever the dtype of the others, by its path.

    The corrections of routers are: rounded, they would choose other experts. transformers keeps
    them so too.
    """
    return name.endswith("/correction")


def cast_params(params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Casts parameters, but for those that stay in fp32."""

    def cast(path: Any, leaf: Any) -> Any:
        return leaf.astype(jnp.float32 if stays_fp32(path_name(path)) else dtype)

    return jax.tree.map_with_path(cast, params)

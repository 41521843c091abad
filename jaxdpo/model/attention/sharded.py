"""An attention kernel over a mesh: each device runs it on its own rows and heads."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxdpo.devices.sharding import BATCH_AXES, batch_shards
from jaxdpo.model.layers import Attend


def on_own_rows(
    attend_rows: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array], layout: Any
) -> Attend:
    """Returns the attention that runs `attend_rows(q, k, v, layout)` on each device.

    Rows or heads that do not divide evenly are not sharded: then every device along that axis of
    the mesh does all of them.

    Args:
      attend_rows: Attention of a device's rows and heads, `[R, T, H, d]` as `Attend` has them.
      layout: A tree of arrays about the rows, whose first axis counts them.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return attend_rows(q, k, v, layout), None
        # The compiler can't partition a kernel: without `shard_map` it gathers all rows everywhere.
        rows = BATCH_AXES if q.shape[0] % batch_shards() == 0 else None
        # By kv-heads: a device that has one has the query heads that read it, in the same order.
        heads = "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None
        qkv = P(rows, None, heads, None)
        sharded = jax.shard_map(
            attend_rows,
            in_specs=(qkv, qkv, qkv, P(rows)),
            out_specs=qkv,
            # Kernels do not say along which axes of the mesh their outputs vary.
            check_vma=False,
        )
        return sharded(q, k, v, layout), None

    return attend

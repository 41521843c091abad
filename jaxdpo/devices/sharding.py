"""One mesh, and one table of path pattern → PartitionSpec that says where every array lives.

The table serves parameters, LoRA adapters, optimizer state, checkpoints and Hugging Face loading
alike, because all of them are nested dicts whose paths end in the same names. Axes of the mesh:

  data     copies of the parameters, each with its own rows of the batch
  fsdp     parameters cut in pieces, gathered a layer at a time; rows are cut along it too
  tensor   heads, MLP columns and vocabulary cut in pieces
  expert   experts spread over the devices; rows are cut along it too
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.errors import UserError

# JAX's name of a host's memory that its devices read by themselves.
HOST = "pinned_host"
AXES = ("data", "fsdp", "tensor", "expert")
# Rows of a batch are cut along all of these.
BATCH_AXES = ("data", "fsdp", "expert")

# A quantised kernel's codes and scales have fewer rows than it, and are cut as it is.
KERNEL = "kernel(/codes|/scales)?$"
# The first pattern found in an array's path decides. Specs name the trailing axes of the array;
# leading ones (stacked layers) are not cut.
SPECS: tuple[tuple[str, P], ...] = (
    # Adafactor's means over rows and columns: vectors, which are named as their matrices are.
    (r"(^|/)v_(row|col)/", P()),
    (r"embed/weight$", P("tensor", "fsdp")),
    (r"head/kernel$", P("fsdp", "tensor")),
    (rf"experts/(gate|up)/{KERNEL}", P("expert", "fsdp", "tensor")),
    (rf"experts/down/{KERNEL}", P("expert", "tensor", "fsdp")),
    (rf"(q|k|v|gate|up)/{KERNEL}", P("fsdp", "tensor")),
    (rf"(o|down)/{KERNEL}", P("tensor", "fsdp")),
    # DoRA's lengths (m), one an output, are cut as biases are.
    (r"(q|k|v|gate|up)/(bias|m)$", P("tensor")),
    (r"(q|k|v|gate|up)/a$", P("fsdp", None)),
    (r"(q|k|v|gate|up)/b$", P(None, "tensor")),
    (r"(o|down)/a$", P("tensor", None)),
    (r"(o|down)/b$", P(None, "fsdp")),
    (r"", P()),
)


class MeshConfig(BaseModel):
    """Devices along each axis; -1 stands for all that are left, on one axis at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: int = Field(default=-1, description="copies of the model, each with its own rows")
    fsdp: int = Field(
        default=1, description="pieces the parameters are cut into, gathered layer by layer"
    )
    tensor: int = Field(default=1, description="pieces each layer's matrices are cut into")
    expert: int = Field(default=1, description="groups of devices that share out the experts")


def agreed(flag: bool) -> bool:
    """Tells whether it is so in every process of the run."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).all())


def make_mesh(config: MeshConfig, compile_only: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh of all devices of all processes.

    Args:
      config: Its axes.
      compile_only: Devices of another machine, to compile for in place of those found.

    Raises:
      UserError: If the axes do not multiply to the number of devices.
    """
    devices = jax.device_count() if compile_only is None else len(compile_only)
    sizes = [getattr(config, axis) for axis in AXES]
    given = math.prod(size for size in sizes if size != -1)
    shown = ", ".join(f"{axis}: {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"mesh is {{{shown}}}; axes must be positive, and -1 may stand on one of them"
        )
    if -1 in sizes and devices % given == 0:
        sizes[sizes.index(-1)] = devices // given
    if math.prod(sizes) != devices:
        raise UserError(
            f"mesh {{{shown}}} does not make up the {devices} devices found; its axes must "
            f"multiply to {devices}, or one of them be -1"
        )
    types = (AxisType.Auto,) * len(AXES)
    if compile_only is None:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types)
    laid_out = mesh_utils.create_device_mesh(
        sizes, list(compile_only), allow_split_physical_axes=True
    )
    return Mesh(laid_out, AXES, axis_types=types)


def path_name(path: Any) -> str:
    """Returns the readable name of a tree path: `layers/attention/q/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", None)) or key) for key in path)


def spec_for(name: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> P:
    """Returns the PartitionSpec of an array by its path.

    An axis that does not divide evenly is not sharded.

    >>> spec_for("layers/mlp/up/kernel", (12, 64, 256), {"data": 1, "fsdp": 2, "tensor": 3})
    PartitionSpec(None, 'fsdp', None)

    Args:
      name: The array's path, as `path_name` writes it.
      shape: Its shape.
      axis_sizes: Axis of the mesh ↦ devices along it.
    """
    spec = next(spec for pattern, spec in SPECS if re.search(pattern, name))
    if len(spec) > len(shape):
        return P()
    leading = (None,) * (len(shape) - len(spec))
    return P(
        *leading,
        *(
            axis if axis and size % axis_sizes[axis] == 0 else None
            for axis, size in zip(spec, shape[len(leading) :], strict=True)
        ),
    )


def shardings_for(tree: Any, mesh: Mesh) -> Any:
    """Returns a NamedSharding for every array (or ShapeDtypeStruct) of a tree, by the table."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec_for(path_name(path), leaf.shape, dict(mesh.shape))
        ),
        tree,
    )


def on_host(tree: Any, mesh: Mesh) -> Any:
    """Returns `shardings_for` in the memory of the hosts that the devices are attached to.

    Raises:
      UserError: If JAX knows no such memory; a sharding that names it would silently not do so.
    """
    here = [one for one in mesh.devices.flat if one.process_index == jax.process_index()]
    if HOST not in {memory.kind for memory in here[0].addressable_memories()}:
        raise UserError(
            f"reference.offload: to JAX a {here[0].device_kind} here has no memory of its host; "
            "leave it out, or set reference.kind=precomputed, which needs no reference in memory"
        )
    return jax.tree.map(lambda one: one.with_memory_kind(HOST), shardings_for(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_shards() -> int:
    """Counts the pieces that rows are sharded into under the current mesh; 1 without one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def current_platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the current mesh's devices, without one JAX's default."""
    # The mesh's and not the default: programs are compiled for devices that are not here, too.
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shard_rows(array: jax.Array, vocabulary: bool = False) -> jax.Array:
    """Shards the first axis as rows of a batch are.

    Nothing happens without a mesh, or where the rows do not divide evenly.

    Args:
      array: The array.
      vocabulary: Whether its last axis is the vocabulary, which stays cut along "tensor".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or array.shape[0] % batch_shards():
        return array
    last = "tensor" if vocabulary and array.shape[-1] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(array, P(BATCH_AXES, *(None,) * (array.ndim - 2), last))


def on_every_device(tree: Any) -> Any:
    """Constrains arrays to be whole on every device, so that every process can read them."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), tree)


def gather_weight(weight: jax.Array, vocabulary: int) -> jax.Array:
    """Gathers the pieces of an embedding or head along `fsdp`; its vocabulary stays sharded.

    A lookup of rows that are cut along `fsdp` in a table cut along it too would have the compiler
    copy both to every device; and a head that is used chunk by chunk, gather something each time.

    Args:
      weight: A matrix.
      vocabulary: Which of its axes counts tokens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    axes: list[str | None] = [None, None]
    axes[vocabulary] = "tensor" if weight.shape[vocabulary] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(weight, P(*axes))


def row_sharding(mesh: Mesh, row_axis: int = 0) -> NamedSharding:
    """Returns the sharding of batch arrays, whose axis `row_axis` counts rows."""
    return NamedSharding(mesh, P(*(None,) * row_axis, BATCH_AXES))


def local_rows(mesh: Mesh, rows: int) -> list[int]:
    """Lists the rows of a batch that the devices of this process hold, ascending."""
    spans = row_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return sorted({row for span in spans if span for row in range(*span[0].indices(rows))})


def put_rows(local: Any, rows: list[int], count: int, mesh: Mesh, row_axis: int) -> Any:
    """Makes global arrays of `count` rows from the rows that this process has built.

    Args:
      local: A tree of arrays whose axis `row_axis` holds the rows `rows`, in that order.
      rows: As given by `local_rows`.
      count: Rows of the global arrays.
      mesh: The mesh.
      row_axis: Which axis counts rows.
    """
    place = {row: slot for slot, row in enumerate(rows)}
    sharding = row_sharding(mesh, row_axis)

    def put(array: np.ndarray) -> jax.Array:
        shape = (*array.shape[:row_axis], count, *array.shape[row_axis + 1 :])

        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[row_axis].indices(count)
            # A device's rows stand together in the local array, as they do in the global one.
            slots = slice(place[start], place[stop - 1] + 1)
            return array[(*index[:row_axis], slots, *index[row_axis + 1 :])]

        return jax.make_array_from_callback(shape, sharding, piece)

    return jax.tree.map(put, local)

"""Attention by Pallas kernels on GPUs, over the tiles of a packed row that hold something to see.

FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691) over the same tiles as `tiles.py`,
with all of a tile in registers: a layer is one kernel forwards, and two and a sum backwards. A
program of a kernel computes one block of `TILE` tokens and is alone to write it, so nothing is
added in an order of chance and the same inputs give the same bits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxdpo.data.packing.batch import TILE, PackedBatch
from jaxdpo.model.attention.pallas_kernels import (
    BackwardInputs,
    KernelStatic,
    dkv_kernel,
    dq_kernel,
    forward_kernel,
)
from jaxdpo.model.attention.sharded import on_own_rows
from jaxdpo.model.attention.tile_lists import TileLists, fill_blocks, tile_lists
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.layers import Attend

# Channels of the largest head of which a tile's queries, keys and values fit into registers.
_CHANNELS = 256


def pallas_attention(
    batch: PackedBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Attend:
    """Returns the attention of one layer over a batch; each device does its own rows and heads.

    Scores and all sums are fp32, whatever the dtype of q, k and v.

    Args:
      batch: Rows with their `tiles` filled in.
      scale: Factor on the scores.
      window: How many positions back a token sees (itself counted); None for all.
      softcap: Bound c of the scaled scores, c · tanh(scores / c), or None.
      interpret: Whether the kernels are interpreted: slow, and on any machine.
    """
    static = KernelStatic(scale, window, softcap, interpret)

    def attend_rows(
        q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, lists: TileLists
    ) -> jax.Array:
        q, k, v = (fill_blocks(x) for x in (q_BTHd, k_BTKd, v_BTKd))
        outputs: Any = _attend(static, q, k, v, lists)
        return outputs[:, : q_BTHd.shape[1]]

    return on_own_rows(attend_rows, tile_lists(batch))


def pallas_refuses(model: ModelConfig, dtype: str, capability: float | None) -> str | None:
    """Returns the reason why the kernel does not compute this model, or None if it does.

    Args:
      model: Architecture.
      dtype: That products are computed in.
      capability: Compute capability of the GPU; None where it is not known.
    """
    if capability is not None and capability < 8.0:
        return f"a GPU of compute capability {capability} has no bfloat16; it needs 8.0"
    channels = model.attention.head_dim
    if channels > _CHANNELS:
        return f"heads have {channels} channels; it takes up to {_CHANNELS}"
    # Exact products of float32 take no tensor cores, and more registers than there are: compiled
    # for an H100 they spill 1 to 23 kB.
    if dtype != "bfloat16":
        return f"it computes in bfloat16, and model.compute_dtype is {dtype}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: KernelStatic, q: jax.Array, k: jax.Array, v: jax.Array, lists: TileLists):
    """Attends over whole blocks: q `[B, T, H, d]`, k and v `[B, T, K, d]` → as q."""
    return _attend_fwd(static, q, k, v, lists)[0]


def _attend_fwd(static: KernelStatic, q: jax.Array, k: jax.Array, v: jax.Array, lists: TileLists):
    B, T, H, _ = q.shape
    block, whole = _specs(q, k)
    lse_shape = jax.ShapeDtypeStruct((B, H, T), jnp.float32)
    outputs, lse_BHT = _call(
        static,
        forward_kernel,
        "tile_attention_forward",
        (T // TILE, H, B),
        (lists, q, k, v),
        (_list_specs(lists), block, whole, whole),
        (jax.ShapeDtypeStruct(q.shape, q.dtype), lse_shape),
        (block, _LINE),
    )
    return outputs, (q, k, v, lists, outputs, lse_BHT)


def _attend_bwd(static: KernelStatic, residuals: Any, cotangent_BTHd: jax.Array):
    q, k, v, lists, outputs_BTHd, lse_BHT = residuals
    B, T, H, d = q.shape
    K = k.shape[2]
    block, whole = _specs(q, k)
    # Softmax's derivative takes from each dweight their mean by weight, which is cotangent · output
    # of each query: the channels d are summed.
    delta_BTH = jnp.sum(cotangent_BTHd.astype(jnp.float32) * outputs_BTHd, axis=-1)
    backward = BackwardInputs(cotangent_BTHd, lse_BHT, jnp.swapaxes(delta_BTH, 1, 2))
    dq = _call(
        static,
        dq_kernel,
        "tile_attention_dq",
        (T // TILE, H, B),
        (lists, q, k, v, backward),
        (_list_specs(lists), block, whole, whole, BackwardInputs(block, _LINE, _LINE)),
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        block,
    )
    # All query heads of a kv-head, in one program: their sum is the key's gradient.
    group = pl.BlockSpec((None, T, H // K, _padded(d)), lambda i, h, b: (b, 0, h, 0))
    lines = pl.BlockSpec((None, H // K, T), lambda i, h, b: (b, h, 0))
    dk, dv = _call(
        static,
        dkv_kernel,
        "tile_attention_dkv",
        (T // TILE, K, B),
        (lists, q, k, v, backward),
        (_list_specs(lists), group, block, block, BackwardInputs(group, lines, lines)),
        (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        (block, block),
    )
    return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _call(
    static: KernelStatic,
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, int, int],
    inputs: tuple[Any, ...],
    in_specs: tuple[Any, ...],
    out_shape: Any,
    out_specs: Any,
) -> Any:
    """Runs a kernel for each block i, head h and row b."""
    # Two groups of four warps share the registers that a tile of wide heads takes.
    warps = 4 if _padded(inputs[1].shape[-1]) <= 64 else 8
    call = pl.pallas_call(
        functools.partial(kernel, static, inputs[1].shape[-1]),
        out_shape=out_shape,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        # While one tile is multiplied the next is loaded.
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
        interpret=static.interpret,
        name=name,
    )
    return call(*inputs)


# A number of each query of block i, of head h and row b.
_LINE = pl.BlockSpec((None, None, TILE), lambda i, h, b: (b, h, i))


def _specs(q: jax.Array, k: jax.Array) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Returns the parts of `[B, T, heads, d]` that a program reads: block i of a head; all keys.

    All of a row's keys stay in the GPU's memory, from which the program loads a block at a time.
    """
    _, T, H, d = q.shape
    group = H // k.shape[2]
    return (
        pl.BlockSpec((None, TILE, None, _padded(d)), lambda i, h, b: (b, i, h, 0)),
        pl.BlockSpec((None, T, None, _padded(d)), lambda i, h, b: (b, 0, jax.lax.div(h, group), 0)),
    )


def _list_specs(lists: TileLists) -> Any:
    """Returns the parts of the lists that a program reads: all of its row's."""
    return jax.tree.map(
        lambda leaf: pl.BlockSpec((None, leaf.shape[1]), lambda i, h, b: (b, 0)), lists
    )


def _padded(channels: int) -> int:
    """Returns the channels that a program loads of a head: Triton's arrays are powers of two."""
    return max(16, pl.next_power_of_2(channels))

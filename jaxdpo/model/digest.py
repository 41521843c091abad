"""A digest of a model's weights, equal on every mesh and number of processes."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.model.decoder import Params


def weights_digest(params: Params) -> str:
    """Returns a digest of all parameters' values, the same on every mesh and number of processes.

    Every element's bits are mixed with its index and summed as integers, on the devices that hold
    them; integer sums do not depend on their order.
    """
    digests = jax.device_get(_leaf_digests(params))
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {digest.tolist()}"
        for (path, leaf), digest in zip(paths, jax.tree.leaves(digests), strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@jax.jit
def _leaf_digests(params: Params) -> Any:
    def mix(bits: jax.Array) -> jax.Array:
        # The finaliser of MurmurHash3 (Appleby, public domain): every input bit moves every output.
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
        return bits ^ (bits >> 16)

    def digest(leaf: jax.Array) -> jax.Array:
        # Bits and not values, so that −0 and NaN have a digest of their own.
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        # The flat index by axes: a reshape would gather a sharded array. It wraps at 2**32, which
        # only makes two elements of a huge array mix alike.
        index = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, leaf.shape, axis
            )
        # Mixed with its place, so that a permutation changes the sum; two sums, so that it takes 64
        # bits to agree by chance. (0x9E3779B9 is 2**32 over the golden ratio; any odd number does.)
        first = mix(bits ^ mix(index))
        second = mix(first + jnp.uint32(0x9E3779B9))
        return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])

    return jax.tree.map(digest, params)

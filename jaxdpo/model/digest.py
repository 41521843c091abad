"""A digest of a model's weights, equal on every mesh and number of processes."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.model.decoder import Params
from jaxdpo.storage.lazy_array import Stored, matrices


def weights_digest(params: Params) -> str:
    """Returns a digest of all parameters' values, the same on every mesh and number of processes.

    Every element's bits are mixed with its index and summed as integers, on the devices that hold
    them; integer sums do not depend on their order.

    Args:
      params: Parameters; those left in their files are read a matrix at a time.
    """
    paths, leaves = [], []
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        paths.append(path)
        leaves.append(leaf)
    in_memory = [leaf for leaf in leaves if not isinstance(leaf, Stored)]
    digests = iter(jax.device_get(_leaf_digests(in_memory, np.uint32(0))))
    lines = []
    for path, leaf in zip(paths, leaves, strict=True):
        digest = _stored_digest(leaf) if isinstance(leaf, Stored) else next(digests)
        lines.append(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {digest.tolist()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stored_digest(stored: Stored) -> np.ndarray:
    sums = np.zeros(2, np.uint32)
    for number, indices in enumerate(np.ndindex(matrices(stored.shape))):
        part = jnp.asarray(stored.at(indices))
        # The matrix's elements are mixed with the indices that they have in the whole array.
        first = np.uint32(number * part.size % 2**32)
        [digest] = _leaf_digests([part], first)
        sums += np.asarray(digest)
    return sums


@jax.jit
def _leaf_digests(leaves: list[jax.Array], first: jax.Array) -> Any:
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
        one = mix(bits ^ mix(index + first))
        other = mix(one + jnp.uint32(0x9E3779B9))
        return jnp.stack([jnp.sum(one, dtype=jnp.uint32), jnp.sum(other, dtype=jnp.uint32)])

    return [digest(leaf) for leaf in leaves]

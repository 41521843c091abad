"""Digests of weights: equal where the values are, on any devices, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.model.digest import weights_digest
from tests.tiny import mesh_of, random_params


@pytest.fixture(scope="module")
def params():
    return random_params(mesh_of(1, 1, 1))


def changed(params, change):
    """A copy in which one matrix is changed on the host."""
    weight = np.array(params["embed"]["weight"])
    change(weight)
    return {**params, "embed": {"weight": jnp.asarray(weight)}}


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 2)])
def test_every_mesh_gives_the_same_digest(params, mesh):
    assert weights_digest(random_params(mesh_of(*mesh))) == weights_digest(params)


def flip_last_bit(weight):
    weight.view(np.uint32)[3, 5] ^= 1


def swap_two(weight):
    weight[0, 0], weight[7, 3] = weight[7, 3], weight[0, 0]


def negate_zero(weight):
    weight[2, 2] = -0.0


@pytest.mark.parametrize("change", [flip_last_bit, swap_two])
def test_a_bit_and_a_place_count(params, change):
    assert weights_digest(changed(params, change)) != weights_digest(params)


def test_negative_zero_is_another_value(params):
    def zero(weight):
        weight[2, 2] = 0.0

    assert weights_digest(changed(params, zero)) != weights_digest(changed(params, negate_zero))


def test_dtype_and_shape_and_name_count(params):
    tree = {"a": jnp.zeros((2, 6))}
    others = [
        {"a": jnp.zeros((2, 6), jnp.bfloat16)},
        {"a": jnp.zeros((3, 4))},
        {"b": jnp.zeros((2, 6))},
        {"a": jnp.zeros((2, 6)), "b": jnp.zeros(0)},
    ]
    digests = {weights_digest(each) for each in [tree, *others]}
    assert len(digests) == 5


def test_large_and_small_dtypes_have_digests():
    # Codes of quantized kernels are bytes.
    tree = {"codes": jnp.arange(-8, 8, dtype=jnp.int8), "u": jnp.arange(16, dtype=jnp.uint8)}
    assert len(weights_digest(tree)) == 64
    moved = jax.tree.map(lambda leaf: jnp.roll(leaf, 1), tree)
    assert weights_digest(moved) != weights_digest(tree)

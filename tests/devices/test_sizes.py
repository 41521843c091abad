"""Rounding to whole blocks, for Python's integers and for arrays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdpo.devices.sizes import ceil_div, round_up


@given(st.integers(0, 2**60), st.integers(1, 2**40))
def test_blocks_hold_the_count_and_one_fewer_does_not(count, size):
    blocks = ceil_div(count, size)
    assert (blocks - 1) * size < count <= blocks * size
    assert round_up(count, size) == blocks * size


@pytest.mark.parametrize("xp", [np, jnp])
def test_arrays_are_divided_element_by_element_in_their_dtype(xp):
    counts = xp.arange(20, dtype=xp.int32)
    blocks = ceil_div(counts, 7)
    assert blocks.dtype == np.int32
    assert blocks.tolist() == [math.ceil(count / 7) for count in range(20)]
    assert jax.jit(lambda counts: round_up(counts, 7))(jnp.int32(8)) == 14

"""Many steps are packed at once as each of them is by itself."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdpo.data.packing.bins import best_fit_decreasing, pack_steps


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 6),
    count=st.integers(1, 40),
    capacity=st.integers(20, 60),
    seed=st.integers(0, 2**31),
)
def test_many_steps_are_packed_as_each_by_itself(steps, count, capacity, seed):
    sizes = np.random.default_rng(seed).integers(1, 21, (steps, count))
    items, bins = pack_steps(sizes, capacity)
    for step in range(steps):
        alone = best_fit_decreasing(sizes[step].tolist(), capacity)
        assert items[step].tolist() == [item for row in alone for item in row]
        assert bins[step].tolist() == [i for i, row in enumerate(alone) for _ in row]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 20), blank=st.integers(0, 20), seed=st.integers(0, 2**31))
def test_items_of_no_size_open_no_bin(count, blank, seed):
    sizes = np.random.default_rng(seed).integers(1, 21, count)
    filled = np.concatenate([sizes, np.zeros(blank, int)])[None]
    _, bins = pack_steps(filled, 25)
    assert bins.max() + 1 == len(best_fit_decreasing(sizes.tolist(), 25))

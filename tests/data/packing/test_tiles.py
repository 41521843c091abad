"""Counted tiles are those that are listed; both are compared with the mask in `test_packing`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdpo.data.packing.plan import (
    BatchConfig,
    BatchShape,
    Packer,
    choose_row_length,
    make_train_plan,
)
from jaxdpo.data.packing.tiles import count_tiles, visible_tiles

SMALL, LARGE = st.integers(1, 20), st.integers(1, 400)
TOKENS = st.one_of(SMALL, LARGE, st.sampled_from([63, 64, 65, 127, 128, 129]))
PAIR = st.tuples(TOKENS, TOKENS, st.one_of(st.just(0), TOKENS))


@settings(max_examples=300, deadline=None)
@given(pairs=st.lists(PAIR, min_size=1, max_size=12), share_prefix=st.booleans())
def test_as_many_tiles_are_counted_as_are_listed(pairs, share_prefix):
    lengths = np.array(pairs)
    prompts = 1 if share_prefix else 1 + (lengths[:, 2] > 0)
    sizes = lengths[:, 0] * prompts + lengths[:, 1:].sum(1)
    counted = count_tiles(lengths, np.cumsum(sizes) - sizes, share_prefix)
    assert counted.sum() == len(visible_tiles(pairs, share_prefix, int(sizes.sum())))


@pytest.mark.parametrize("layout", ["plain", "tiles", "sequences", "unpacked"])
def test_the_shape_of_many_steps_is_the_largest_of_theirs(layout):
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 90, (2000, 3)).astype(np.int32)
    lengths[::5, 2] = 0
    config = BatchConfig(size=4)
    row_length = choose_row_length(lengths, config, 2)
    plan = make_train_plan(Packer(lengths, config, 2, row_length), 0, 1.0, None)
    each = [plan.packer.shape_of(plan.microbatches(s), layout) for s in range(plan.num_steps)]
    sizes = {name: max(vars(shape)[name] for shape in each) for name in vars(each[0])}
    assert plan.shape(layout) == BatchShape(**sizes)
    rows = [row for s in range(plan.num_steps) for batch in plan.microbatches(s) for row in batch]
    if layout == "tiles":
        tiles = [len(visible_tiles(lengths[row], True, row_length)) for row in rows]
        assert sizes["tiles"] == max(tiles)
    if layout == "unpacked":
        assert sizes["sequences"] == max(np.count_nonzero(lengths[row, 1:]) for row in rows)

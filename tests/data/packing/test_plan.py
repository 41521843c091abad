"""The plan: exact batches, a pure order, rows that hold what they are given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdpo.data.packing.bins import best_fit_decreasing
from jaxdpo.data.packing.plan import (
    BatchConfig,
    Packer,
    choose_row_length,
    laid_out_lengths,
    make_train_plan,
    scoring_microbatches,
)
from jaxdpo.errors import UserError


def random_lengths(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal([3, 3.5, 3.5], 0.6, (count, 3)), 1, 150).astype(np.int32)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    capacity=st.integers(50, 120),
)
def test_packing_holds_every_item_once_within_capacity(sizes, capacity):
    bins = best_fit_decreasing(sizes, capacity)
    assert sorted(item for items in bins for item in items) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in items) <= capacity for items in bins)
    # Best fit never leaves two bins that would have fitted into one.
    loads = sorted(sum(sizes[item] for item in items) for items in bins)
    assert len(bins) < 2 or loads[0] + loads[1] > capacity


def test_packing_by_hand():
    # 5 first, then 4 (no room beside 5), 3 beside 4, 2 beside 5.
    assert best_fit_decreasing([3, 5, 2, 4], capacity=7) == [[1, 2], [3, 0]]


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(4, 60),
    size=st.integers(1, 16),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    share=st.booleans(),
    pack=st.booleans(),
)
def test_every_step_has_exactly_its_pairs_and_fits_the_shape(count, size, rows, seed, share, pack):
    size = min(size, count)
    lengths = random_lengths(count, seed)
    config = BatchConfig(size=size, share_prefix=share, pack=pack)
    packer = Packer(lengths, config, rows, choose_row_length(lengths, config, rows))
    plan = make_train_plan(packer, seed, epochs=2, max_steps=None)
    shape = plan.shape(layout="plain")
    laid_out = laid_out_lengths(lengths, share)
    seen = np.zeros(count, int)
    for step in range(plan.num_steps):
        microbatches = plan.microbatches(step)
        pairs = [pair for microbatch in microbatches for row in microbatch for pair in row]
        assert sorted(pairs) == sorted(plan.pairs(step).tolist())
        assert len(pairs) == size
        np.add.at(seen, pairs, 1)
        assert len(microbatches) <= shape.microbatches
        for microbatch in microbatches:
            assert len(microbatch) <= rows
            for row in microbatch:
                assert laid_out[row].sum() <= shape.row_length
                assert len(row) <= (shape.pairs if pack else 1)
                assert lengths[row, 1:].sum() <= shape.scores
    # Two whole epochs, and what the last step borrows from the third.
    assert seen.min() >= 2
    assert seen.sum() == plan.num_steps * size


def test_a_step_is_a_function_of_its_number_alone():
    lengths = random_lengths(50)
    config = BatchConfig(size=7)
    packer = Packer(lengths, config, 1, choose_row_length(lengths, config, 1))
    forwards = make_train_plan(packer, 3, 4.0, None)
    backwards = make_train_plan(packer, 3, 4.0, None)
    steps = range(forwards.num_steps)
    expected = [forwards.microbatches(step) for step in steps]
    assert [backwards.microbatches(step) for step in reversed(steps)] == expected[::-1]
    other_seed = make_train_plan(packer, 4, 4.0, None)
    assert [other_seed.microbatches(step) for step in steps] != expected


def test_each_epoch_is_a_permutation_of_its_own():
    lengths = random_lengths(12)
    packer = Packer(lengths, BatchConfig(size=4), 1, 1024)
    plan = make_train_plan(packer, 0, 3.0, None)
    epochs = [np.concatenate([plan.pairs(3 * e + s) for s in range(3)]).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_scoring_visits_every_pair_once():
    lengths = random_lengths(2500)
    packer = Packer(lengths, BatchConfig(), 3, choose_row_length(lengths, BatchConfig(), 3))
    pairs = [p for microbatch in scoring_microbatches(packer) for row in microbatch for p in row]
    assert sorted(pairs) == list(range(2500))


@pytest.mark.parametrize("seed", range(3))
def test_default_row_length_wastes_little_on_chat_lengths(seed):
    rng = np.random.default_rng(seed)
    draws = rng.lognormal(np.log([120, 290, 290]) - 0.18, 0.6, (4000, 3))
    lengths = np.clip(draws, 2, 900).astype(np.int32)
    config = BatchConfig(size=64)
    row_length = choose_row_length(lengths, config, 1)
    plan = make_train_plan(Packer(lengths, config, 1, row_length), 0, 1.0, None)
    used = laid_out_lengths(lengths, True)
    steps = range(plan.num_steps)
    tokens = sum(used[plan.pairs(step)].sum() for step in steps)
    slots = sum(len(plan.microbatches(step)) * row_length for step in steps)
    assert tokens / slots >= 0.95


def test_a_pair_longer_than_the_row_is_refused():
    with pytest.raises(UserError, match=r"batch.row_length is 64, but pair 1 takes 90 tokens"):
        choose_row_length(np.array([[5, 5, 5], [30, 30, 30]]), BatchConfig(row_length=64), 1)


def test_a_batch_larger_than_the_data_is_refused():
    packer = Packer(random_lengths(5), BatchConfig(size=8), 1, 512)
    with pytest.raises(UserError, match=r"batch.size is 8, but there are only 5 TRAIN pairs"):
        make_train_plan(packer, 0, 1.0, None)


def test_the_order_of_runs_begun_before_is_kept():
    """numpy's own permutation, by which runs of earlier versions go on."""
    lengths = random_lengths(500)
    config = BatchConfig(size=50)
    packer = Packer(lengths, config, 1, choose_row_length(lengths, config, 1))
    plan = make_train_plan(packer, 7, epochs=2, max_steps=None)
    for epoch in range(2):
        drawn = np.random.Generator(np.random.Philox(key=[7, epoch])).permutation(500)
        planned = [plan.pairs(10 * epoch + step) for step in range(10)]
        assert np.concatenate(planned).tolist() == drawn.tolist()

"""Packing: the layout of `jaxdpo.data.packing.batch`, by hand and against the ragged pairs."""

import numpy as np
import pytest

from jaxdpo.data.packing.batch import CHOSEN, REJECTED, TILE, sharing_mask
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import (
    BatchConfig,
    BatchShape,
    Packer,
    longest_sequence,
    scoring_microbatches,
    scoring_shape,
)
from jaxdpo.data.pairs import TokenizedPair


def pair(prompt, chosen, rejected) -> TokenizedPair:
    return TokenizedPair(*(np.array(ids, np.int32) for ids in (prompt, chosen, rejected)))


HAND = [pair([10, 11, 12], [20, 21], [30, 31, 32]), pair([13], [22], [33, 34])]


def test_layout_by_hand():
    batch = pack_batch(HAND, [[0, 1]], BatchShape(rows=1, row_length=14, pairs=3, scores=9))
    expected = {
        "tokens": [10, 11, 12, 20, 21, 30, 31, 32, 13, 22, 33, 34, 0, 0],
        "positions": [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1, 2, 0, 0],
        "pair_ids": [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0],
        "branches": [0, 0, 0, 1, 1, 2, 2, 2, 0, 1, 2, 2, 0, 0],
        "end": [8, 8, 8, 5, 5, 8, 8, 8, 12, 10, 12, 12, 14, 14],
        # The last prompt token (2, then 8) predicts the first token of both completions.
        "score_index": [2, 3, 2, 5, 6, 8, 8, 10, 0],
        "score_target": [20, 21, 30, 31, 32, 22, 33, 34, 0],
        "score_pair": [1, 1, 1, 1, 1, 2, 2, 2, 0],
        "score_branch": [1, 1, 2, 2, 2, 1, 2, 2, 0],
        "pair_index": [0, 1, -1],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(batch, name)[0], values, err_msg=name)


def test_layout_without_prefix_sharing_by_hand():
    shape = BatchShape(rows=1, row_length=11, pairs=1, scores=5)
    batch = pack_batch(HAND, [[0]], shape, share_prefix=False)
    np.testing.assert_array_equal(batch.tokens[0], [10, 11, 12, 20, 21, 10, 11, 12, 30, 31, 32])
    np.testing.assert_array_equal(batch.pair_ids[0], [1] * 5 + [2] * 6)
    np.testing.assert_array_equal(batch.end[0], [5] * 5 + [11] * 6)
    np.testing.assert_array_equal(batch.score_index[0], [2, 3, 7, 8, 9])
    np.testing.assert_array_equal(batch.score_pair[0], [1] * 5)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_what_a_scored_token_sees_is_its_own_sequence(share_prefix):
    """Reading each scored token's visible keys back gives the prompt and completion before it."""
    rng = np.random.default_rng(0)
    pairs = [pair(*(rng.integers(1, 99, n) for n in rng.integers(1, 9, 3))) for _ in range(12)]
    lengths = np.array([[len(ids) for ids in p[:3]] for p in pairs])
    packer = Packer(lengths, BatchConfig(share_prefix=share_prefix), rows=8, row_length=64)
    microbatches = packer.microbatches(range(12))
    shape = packer.shape_of(microbatches, layout="sequences")
    found = 0
    for microbatch in microbatches:
        batch = pack_batch(pairs, microbatch, shape, share_prefix=share_prefix)
        mask = sharing_mask(batch.pair_ids, batch.branches)
        for row, slot in zip(*np.nonzero(batch.score_pair), strict=True):
            query = batch.score_index[row, slot]
            seen = batch.tokens[row][mask[row, query]]
            owner = pairs[batch.pair_index[row, batch.score_pair[row, slot] - 1]]
            branch = batch.score_branch[row, slot]
            completion = {CHOSEN: owner.chosen_ids, REJECTED: owner.rejected_ids}[branch]
            place = len(seen) - len(owner.prompt_ids)
            whole = np.concatenate([owner.prompt_ids, completion])
            np.testing.assert_array_equal(seen, whole[: len(seen)])
            assert batch.score_target[row, slot] == completion[place]
            assert batch.positions[row, query] == len(seen) - 1
            found += 1
    assert found == lengths[:, 1:].sum()


@pytest.mark.parametrize("share_prefix", [True, False])
def test_one_number_a_key_says_the_same_as_the_sentence(share_prefix):
    rng = np.random.default_rng(5)
    parts = [(1, 1, 1), (3, 4, 0), *rng.integers(1, 12, (30, 3))]
    pairs = [pair(*(np.ones(n, int) for n in lengths)) for lengths in parts]
    packer = Packer(np.array(parts), BatchConfig(share_prefix=share_prefix), 3, 60)
    microbatches = packer.microbatches(range(len(pairs)))
    shape = packer.shape_of(microbatches, "plain")
    order = np.arange(60)
    for microbatch in microbatches:
        batch = pack_batch(pairs, microbatch, shape, share_prefix=share_prefix)
        before_its_end = order[:, None] < batch.end[:, None, :]
        seen = (order[:, None] >= order) & before_its_end
        np.testing.assert_array_equal(seen, sharing_mask(batch.pair_ids, batch.branches))


@pytest.mark.parametrize("share_prefix", [True, False])
def test_tiles_are_the_blocks_in_which_the_mask_holds_anything(share_prefix):
    rng = np.random.default_rng(2)
    parts = [(1, 1, 1), (64, 64, 64), (63, 65, 0), (200, 1, 90), *rng.integers(1, 150, (8, 3))]
    pairs = [pair(*(np.ones(n, int) for n in lengths)) for lengths in parts]
    lengths = np.array(parts)
    packer = Packer(lengths, BatchConfig(share_prefix=share_prefix), rows=2, row_length=500)
    microbatches = packer.microbatches(range(len(pairs)))
    shape = packer.shape_of(microbatches, "tiles")
    most = 0
    for microbatch in microbatches:
        batch = pack_batch(pairs, microbatch, shape, share_prefix=share_prefix)
        mask = sharing_mask(batch.pair_ids, batch.branches) & (batch.pair_ids > 0)[..., None]
        # 500 tokens are 7 blocks and a part of the eighth.
        padded = np.pad(mask, ((0, 0), (0, 12), (0, 12)))
        blocks = np.asarray(padded.reshape(2, 8, TILE, 8, TILE).any((2, 4)))
        for row in range(2):
            used = batch.tiles[row][batch.tiles[row, :, 0] < 8]
            np.testing.assert_array_equal(used, np.argwhere(blocks[row]))
            most = max(most, len(used))
    assert shape.tiles == most


def test_gather_lays_out_each_sequence_whole():
    rng = np.random.default_rng(1)
    pairs = [pair(*(rng.integers(1, 99, n) for n in rng.integers(1, 20, 3))) for _ in range(9)]
    lengths = np.array([[len(ids) for ids in p[:3]] for p in pairs])
    packer = Packer(lengths, BatchConfig(), rows=2, row_length=160)
    microbatches = packer.microbatches(range(9))
    shape = packer.shape_of(microbatches, layout="sequences")
    for microbatch in microbatches:
        batch = pack_batch(pairs, microbatch, shape)
        for row, members in enumerate(microbatch):
            index, segment = batch.gather.index[row], batch.gather.segment[row]
            laid_out = sorted(
                batch.tokens[row][index[a][segment[a] == s]].tolist()
                for a in range(len(index))
                for s in range(1, segment[a].max() + 1)
            )
            sequences = [
                [*pairs[m].prompt_ids, *completion]
                for m in members
                for completion in (pairs[m].chosen_ids, pairs[m].rejected_ids)
            ]
            assert laid_out == sorted(sequences)
            used = batch.pair_ids[row] > 0
            back = index.reshape(-1)[batch.gather.inverse[row]]
            np.testing.assert_array_equal(back[used], np.flatnonzero(used))


def test_one_scoring_shape_holds_every_batch_of_two_data_sets():
    rng = np.random.default_rng(2)
    both = [
        [pair(*(rng.integers(1, 99, n) for n in rng.integers(1, longest, 3))) for _ in range(count)]
        for count, longest in ((150, 12), (11, 60))
    ]
    lengths = [np.array([[len(ids) for ids in p[:3]] for p in pairs]) for pairs in both]
    longest = longest_sequence(np.concatenate(lengths))
    packers = [Packer(each, BatchConfig(), 2, 200, longest) for each in lengths]
    shape = scoring_shape(packers, layout="sequences")
    for pairs, packer in zip(both, packers, strict=True):
        scored = 0
        for microbatch in scoring_microbatches(packer):
            batch = pack_batch(pairs, microbatch, shape)
            scored += np.count_nonzero(batch.score_pair)
            used = batch.pair_ids > 0
            back = np.take_along_axis(
                batch.gather.index.reshape(2, -1), batch.gather.inverse, axis=1
            )
            np.testing.assert_array_equal(back[used], np.nonzero(used)[1])
        assert scored == packer.lengths[:, 1:].sum()


def test_only_the_rows_of_this_process_are_built():
    shape = BatchShape(rows=3, row_length=12, pairs=1, scores=5)
    microbatch = [[0], [1]]
    whole = pack_batch(HAND, microbatch, shape)
    part = pack_batch(HAND, microbatch, shape, rows=[1, 2])
    np.testing.assert_array_equal(part.tokens, whole.tokens[1:])
    np.testing.assert_array_equal(part.pair_index, [[1], [-1]])

"""Planned pairs → the arrays of a `PackedBatch`, on the host."""

from collections.abc import Sequence
from typing import Protocol

import grain
import numpy as np

from jaxdpo.data.packing.batch import CHOSEN, PROMPT, REJECTED, TILE, PackedBatch, SequenceGather
from jaxdpo.data.packing.plan import BatchShape, Microbatch, Row, best_fit_decreasing
from jaxdpo.data.packing.tiles import visible_tiles
from jaxdpo.data.pairs import TokenizedPair, scored_tokens
from jaxdpo.devices.sizes import ceil_div

# Batches made ahead by threads: enough to hide the packing, small beside the model.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class PairSource(Protocol):
    """Random access to tokenised pairs."""

    def __getitem__(self, index: int, /) -> TokenizedPair: ...

    def __len__(self) -> int: ...

    def source(self, index: int, /) -> str:
        """Where the pair came from, as `file:line`."""
        ...


def empty_batch(shape: BatchShape, rows: int) -> PackedBatch:
    """A batch of `rows` rows of padding, in numpy."""

    def full(*sizes: int, value: int = 0) -> np.ndarray:
        return np.full((rows, *sizes), value, np.int32)

    tokens, scores = shape.row_length, shape.scores
    attention = (shape.sequences, shape.sequence_width) if shape.sequence_width > 1 else (0, 0)
    return PackedBatch(
        tokens=full(tokens),
        positions=full(tokens),
        pair_ids=full(tokens),
        branches=full(tokens),
        score_index=full(scores),
        score_target=full(scores),
        score_pair=full(scores),
        score_branch=full(scores),
        pair_index=full(shape.pairs, value=-1),
        tiles=full(shape.tiles, 2, value=ceil_div(tokens, TILE)),
        gather=SequenceGather(full(*attention), full(*attention), full(tokens)),
    )


def pack_batch(
    source: PairSource,
    microbatch: Microbatch,
    shape: BatchShape,
    *,
    share_prefix: bool = True,
    rows: Sequence[int] | None = None,
) -> PackedBatch:
    """Lays a microbatch out as arrays.

    Args:
      source: The tokenised pairs.
      microbatch: Pairs of each row, as planned; missing rows are padding.
      shape: The static shape to fill.
      share_prefix: Whether a prompt is laid out once for its two completions.
      rows: Which of the microbatch's rows to build (those of this process); all by default.

    Returns:
      The batch, `[len(rows), ...]`, in numpy.
    """
    wanted = range(shape.rows) if rows is None else rows
    batch = empty_batch(shape, len(wanted))
    for slot, row in enumerate(wanted):
        if row < len(microbatch):
            pairs = [source[index] for index in microbatch[row]]
            _RowWriter(batch, slot).write(microbatch[row], pairs, share_prefix)
            if shape.tiles:
                lengths_P3 = [[len(ids) for ids in pair[:3]] for pair in pairs]
                tiles = visible_tiles(lengths_P3, share_prefix, shape.row_length)
                batch.tiles[slot, : len(tiles)] = tiles
    if shape.sequence_width > 1:
        for slot in range(len(wanted)):
            _write_gather(batch, slot, shape.apart)
    return batch


class _RowWriter:
    """Appends pairs to one row of a batch, in place."""

    def __init__(self, batch: PackedBatch, row: int):
        self.batch, self.row = batch, row
        self.token = self.score = self.segment = 0

    def write(self, indices: Row, pairs: Sequence[TokenizedPair], share_prefix: bool) -> None:
        for slot, (index, pair) in enumerate(zip(indices, pairs, strict=True)):
            self.batch.pair_index[self.row, slot] = index
            last = self._prompt(pair.prompt_ids)
            self._completion(pair, CHOSEN, slot + 1, last)
            if not len(pair.rejected_ids):
                continue
            if not share_prefix:
                last = self._prompt(pair.prompt_ids)
            self._completion(pair, REJECTED, slot + 1, last)

    def _tokens(self, ids: np.ndarray, branch: int, position: int) -> None:
        span = (self.row, slice(self.token, self.token + len(ids)))
        self.batch.tokens[span] = ids
        self.batch.positions[span] = np.arange(position, position + len(ids))
        self.batch.pair_ids[span] = self.segment
        self.batch.branches[span] = branch
        self.token += len(ids)

    def _prompt(self, ids: np.ndarray) -> int:
        self.segment += 1
        self._tokens(ids, PROMPT, 0)
        return self.token - 1

    def _completion(self, pair: TokenizedPair, branch: int, pair_id: int, last: int) -> None:
        ids = pair.chosen_ids if branch == CHOSEN else pair.rejected_ids
        unscored = pair.chosen_unscored if branch == CHOSEN else pair.rejected_unscored
        first = self.token
        self._tokens(ids, branch, int(self.batch.positions[self.row, last]) + 1)
        scored = scored_tokens(len(ids), unscored)
        span = (self.row, slice(self.score, self.score + len(scored)))
        # The first token is predicted by the prompt's last, each other by its predecessor.
        self.batch.score_index[span] = np.where(scored == 0, last, first + scored - 1)
        self.batch.score_target[span] = ids[scored]
        self.batch.score_pair[span] = pair_id
        self.batch.score_branch[span] = branch
        self.score += len(scored)


def _write_gather(batch: PackedBatch, row: int, apart: bool) -> None:
    """Fills `batch.gather` for one row, from its pair ids and branches alone."""
    ids, branches = batch.pair_ids[row], batch.branches[row]
    sequences = []
    for pair_id in range(1, int(ids.max(initial=0)) + 1):
        of_pair = ids == pair_id
        prompt = np.flatnonzero(of_pair & (branches == PROMPT))
        for branch in (CHOSEN, REJECTED):
            completion = np.flatnonzero(of_pair & (branches == branch))
            if len(completion):
                sequences.append(np.concatenate([prompt, completion]))
    width = batch.gather.index.shape[-1]
    filled = np.zeros(len(ids), bool)
    sizes = [len(sequence) for sequence in sequences]
    bins = [[i] for i in range(len(sizes))] if apart else best_fit_decreasing(sizes, width)
    for attention_row, members in enumerate(bins):
        start = 0
        for segment, member in enumerate(sorted(members), start=1):
            tokens = sequences[member]
            span = (row, attention_row, slice(start, start + len(tokens)))
            batch.gather.index[span] = tokens
            batch.gather.segment[span] = segment
            new = ~filled[tokens]
            slots = attention_row * width + start + np.arange(len(tokens))
            batch.gather.inverse[row, tokens[new]] = slots[new]
            filled[tokens] = True
            start += len(tokens)

"""Lays planned pairs out as the arrays of a `PackedBatch`, on the host.

The module `batch` draws the layout that is written here.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jaxdpo.data.packing.batch import CHOSEN, PROMPT, REJECTED, TILE, PackedBatch, SequenceGather
from jaxdpo.data.packing.bins import best_fit_decreasing
from jaxdpo.data.packing.plan import BatchShape, Microbatch, Row
from jaxdpo.data.packing.tiles import visible_tiles
from jaxdpo.data.pairs import TokenizedPair, scored_tokens
from jaxdpo.devices.sizes import ceil_div

# Batches made ahead by threads: enough to hide the packing, small beside the model.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class PairSource(Protocol):
    """Tokenised pairs that are read by index."""

    def __getitem__(self, index: int, /) -> TokenizedPair: ...

    def __len__(self) -> int: ...

    def source(self, index: int, /) -> str:
        """Returns the place that the pair came from, as `file:line`."""
        ...


def empty_batch(shape: BatchShape, rows: int) -> PackedBatch:
    """Returns a batch of `rows` rows of padding, in numpy."""

    def full(*sizes: int, value: int = 0) -> np.ndarray:
        return np.full((rows, *sizes), value, np.int32)

    tokens, scores = shape.row_length, shape.scores
    # Without attention rows of their own the sequences need no gather; `inverse` keeps its shape,
    # so that the batch is the same tree of arrays either way.
    attention = (shape.sequences, shape.sequence_width) if shape.sequence_width > 1 else (0, 0)
    return PackedBatch(
        tokens=full(tokens),
        positions=full(tokens),
        pair_ids=full(tokens),
        branches=full(tokens),
        # Padding is one segment of its own, to the row's end.
        end=full(tokens, value=tokens),
        score_index=full(scores),
        score_target=full(scores),
        score_pair=full(scores),
        score_branch=full(scores),
        # 0 is a pair: -1 says that there is none. A tile's blocks are numbered from 0 too, so the
        # number of blocks, which is no block, marks an unused one.
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
            _write_gather(batch, slot, shape.unpacked)
    return batch


class _RowWriter:
    """Appends pairs to one row of a batch, in place.

    Attributes:
      batch: The batch.
      row: The row that is written.
      token: Tokens written so far, which is where the next one goes.
      score: Scored tokens written so far.
      segment: The pair id of the tokens being written. Without prefix sharing the two sequences of
        a pair do not see each other, so each has a pair id of its own.
    """

    def __init__(self, batch: PackedBatch, row: int):
        self.batch, self.row = batch, row
        self.token = self.score = self.segment = 0

    def write(self, indices: Row, pairs: Sequence[TokenizedPair], share_prefix: bool) -> None:
        for slot, (index, pair) in enumerate(zip(indices, pairs, strict=True)):
            self.batch.pair_index[self.row, slot] = index
            last, prompt = self._prompt(pair.prompt_ids)
            # `score_pair` counts pairs from 1, shared or not: log-probs are summed by it.
            self._completion(pair, CHOSEN, slot + 1, last)
            # Supervised examples and labelled answers have one completion.
            if len(pair.rejected_ids):
                if not share_prefix:
                    self.batch.end[prompt] = self.token
                    last, prompt = self._prompt(pair.prompt_ids)
                self._completion(pair, REJECTED, slot + 1, last)
            # Both completions see the prompt, so its end is known once they are written.
            self.batch.end[prompt] = self.token

    def _tokens(self, ids: np.ndarray, branch: int, position: int) -> None:
        span = (self.row, slice(self.token, self.token + len(ids)))
        self.batch.tokens[span] = ids
        self.batch.positions[span] = np.arange(position, position + len(ids))
        self.batch.pair_ids[span] = self.segment
        self.batch.branches[span] = branch
        self.token += len(ids)
        self.batch.end[span] = self.token

    def _prompt(self, ids: np.ndarray) -> tuple[int, Any]:
        """Writes a prompt; returns the place of its last token, and the index of all of them."""
        self.segment += 1
        first = self.token
        self._tokens(ids, PROMPT, 0)
        return self.token - 1, (self.row, slice(first, self.token))

    def _completion(self, pair: TokenizedPair, branch: int, pair_id: int, last: int) -> None:
        """Writes a completion and its scored tokens; `last` is the place of its prompt's last."""
        ids = pair.chosen_ids if branch == CHOSEN else pair.rejected_ids
        unscored = pair.chosen_unscored if branch == CHOSEN else pair.rejected_unscored
        first = self.token
        # Both completions go on from the prompt, whatever stands between it and them in the row.
        self._tokens(ids, branch, int(self.batch.positions[self.row, last]) + 1)
        scored = scored_tokens(len(ids), unscored)
        span = (self.row, slice(self.score, self.score + len(scored)))
        # The shift by one of a causal model: the first token is predicted by the prompt's last,
        # which may stand far before it, and each other by the one before it in the row. The place
        # before an unscored token is left out with it.
        self.batch.score_index[span] = np.where(scored == 0, last, first + scored - 1)
        self.batch.score_target[span] = ids[scored]
        self.batch.score_pair[span] = pair_id
        self.batch.score_branch[span] = branch
        self.score += len(scored)


def _write_gather(batch: PackedBatch, row: int, unpacked: bool) -> None:
    """Fills `batch.gather` for one row, from its pair ids and branches alone.

    Kernels for plain causal attention know segments, and no prefix that two segments share. For
    them a row's sequences are gathered into attention rows, each with its own copy of the prompt,
    and the outputs are brought back by `inverse`.
    """
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
    # Tokens whose output has a place already: both copies of a prompt's token have the same output,
    # and the first one's is used.
    filled = np.zeros(len(ids), bool)
    sizes = [len(sequence) for sequence in sequences]
    bins = [[i] for i in range(len(sizes))] if unpacked else best_fit_decreasing(sizes, width)
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

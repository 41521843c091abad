"""The plan of a run: which pairs form optimizer step s, and how they are packed into rows.

The plan is a pure function of (lengths, seed, batch size, row length): it holds no state, so the
step number alone says what data comes next, in any process and after any restart.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.packing.bins import best_fit_decreasing, pack_steps
from jaxdpo.data.packing.tiles import count_tiles
from jaxdpo.devices.sizes import ceil_div, round_up
from jaxdpo.errors import UserError

# Pairs of one row, rows of one microbatch: indices into the data set.
Row = list[int]
Microbatch = list[Row]

# What a batch says of its rows to the attention: nothing; which tiles hold something to see; or
# how their sequences are laid out as attention rows, several in each, or one ("unpacked").
Layout = Literal["plain", "tiles", "sequences", "unpacked"]

# Pairs packed together when order does not matter (scoring): enough that rows fill up.
_SCORING_WINDOW = 1024
# Optimizer steps that the row length is chosen on.
_SAMPLED_STEPS = 8
# Pairs whose shape is computed together: enough that numpy's cost is in the numbers and not in its
# calls, few enough that a plan of ten million pairs is never held whole.
_TOGETHER = 2**16


class BatchConfig(BaseModel):
    """The size of optimizer steps, and how pairs are packed into rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(
        default=32, ge=1, description="preference pairs in an optimizer step, exactly"
    )
    row_length: int | None = Field(
        default=None, ge=8, description="tokens in a packed row; default: chosen from the lengths"
    )
    rows_per_device: int = Field(default=1, ge=1, description="rows of a microbatch on each device")
    pack: bool = Field(
        default=True, description="several pairs in a row; the loss is the same without"
    )
    share_prefix: bool = Field(
        default=True,
        description="lay a prompt out once for both completions; the loss is the same without",
    )


@dataclass(frozen=True)
class BatchShape:
    """The one static shape of a run's microbatches, in the letters of `PackedBatch`.

    Attributes:
      rows: R, rows of a microbatch over all devices.
      row_length: T, tokens in a row.
      pairs: P, most pairs in a row.
      scores: S, most scored tokens in a row.
      tiles: N, most tiles of a row that hold something to see.
      sequences: A, attention rows that hold a row's sequences, each with its own prompt.
      sequence_width: W, tokens of an attention row.
      unpacked: Whether each sequence has an attention row of its own.
      microbatches: M, most microbatches in an optimizer step.
    """

    rows: int
    row_length: int
    pairs: int = 1
    scores: int = 1
    tiles: int = 0
    sequences: int = 1
    sequence_width: int = 1
    unpacked: bool = False
    microbatches: int = 1

    def cover(self, other: "BatchShape") -> "BatchShape":
        """Returns the smallest shape that holds what either holds."""
        return BatchShape(
            **{name: max(value, getattr(other, name)) for name, value in vars(self).items()}
        )


def laid_out_lengths(lengths_N3: np.ndarray, share_prefix: bool) -> np.ndarray:
    """Returns the tokens that each pair takes in a row, i64 `[N]`.

    They are p + c + r, or 2p + c + r without prefix sharing; without a rejected completion p + c.

    >>> laid_out_lengths(np.array([[3, 2, 4], [3, 2, 0]]), share_prefix=False).tolist()
    [12, 5]
    """
    return _laid_out(np.asarray(lengths_N3, np.int64), share_prefix)


def _laid_out(lengths_N3: np.ndarray, share_prefix: bool) -> np.ndarray:
    """Returns what `laid_out_lengths` does, in the dtype of the lengths."""
    prompt, chosen, rejected = lengths_N3.T
    total = prompt + chosen
    total += rejected
    if not share_prefix:
        total += np.where(rejected > 0, prompt, 0)
    return total


def choose_row_length(lengths_N3: np.ndarray, config: BatchConfig, rows: int) -> int:
    """Returns the configured row length, or the one that wastes least on a sample of steps.

    Candidates are multiples of 128 from the longest pair to three times it; of those within half a
    percent of the best the shortest wins, because attention costs less in short rows.

    Args:
      lengths_N3: i32 `[N, 3]`, tokens of prompt, chosen and rejected.
      config: How to pack.
      rows: Rows of a microbatch over all devices.

    Raises:
      UserError: If a pair does not fit the configured row length.
    """
    laid_out = _laid_out(lengths_N3.astype(np.int32, copy=False), config.share_prefix)
    longest, index = int(laid_out.max()), int(laid_out.argmax())
    if config.row_length is not None:
        if longest > config.row_length:
            raise UserError(
                f"batch.row_length is {config.row_length}, but pair {index} takes {longest} tokens "
                f"(prompt, chosen and rejected together); set batch.row_length to {longest} or "
                "more, or lower data.max_length"
            )
        return config.row_length
    shortest = round_up(longest, 128)
    if not config.pack:
        return shortest
    sample = lengths_N3[_epoch_order(0, 0, len(laid_out))[: _SAMPLED_STEPS * config.size]]
    steps = np.split(np.arange(len(sample)), range(config.size, len(sample), config.size))

    def padded_tokens(row_length: int) -> int:
        packer = Packer(sample, config, rows, row_length)
        return sum(len(packer.microbatches(step)) * rows * row_length for step in steps)

    # Computed tokens, data and padding, at each length.
    cost = {length: padded_tokens(length) for length in range(shortest, 3 * shortest + 1, 128)}
    return min(length for length, tokens in cost.items() if tokens <= 1.005 * min(cost.values()))


@dataclass(frozen=True)
class Packer:
    """Packs pairs into rows, and rows into microbatches.

    Attributes:
      lengths: i32 `[N, 3]`, tokens of prompt, chosen and rejected of every pair of the data set.
      config: How to pack.
      rows: Rows of a microbatch over all devices.
      row_length: Tokens of a row.
      longest: Tokens of the longest sequence that shapes must hold; by default of these pairs.
    """

    lengths: np.ndarray
    config: BatchConfig
    rows: int
    row_length: int
    longest: int | None = None

    @functools.cached_property
    def _laid_out(self) -> np.ndarray:
        # Narrow, because there may be millions.
        return _laid_out(self.lengths.astype(np.int32, copy=False), self.config.share_prefix)

    def microbatches(self, pairs: Sequence[int] | np.ndarray) -> list[Microbatch]:
        """Packs pairs into as few microbatches of `rows` rows as hold them."""
        known = np.asarray(pairs, np.int64)
        indices = known.tolist()
        if self.config.pack:
            packed = best_fit_decreasing(self._laid_out[known].tolist(), self.row_length)
            rows = [[indices[i] for i in row] for row in packed]
        else:
            rows = [[pair] for pair in indices]
        return [rows[i : i + self.rows] for i in range(0, len(rows), self.rows)]

    def shape_of(self, microbatches: Sequence[Microbatch], layout: Layout) -> BatchShape:
        """Returns the smallest shape that holds these microbatches."""
        rows = list(itertools.chain.from_iterable(microbatches))
        members = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
        shape = self._shape_of_rows(members, np.fromiter(map(len, rows), np.int64), layout)
        return replace(shape, microbatches=len(microbatches))

    def shape_of_steps(self, pairs_SN: np.ndarray, layout: Layout) -> BatchShape:
        """Returns the smallest shape that holds the microbatches of each of S steps of N pairs.

        Args:
          pairs_SN: Indices of the steps' pairs, `[S, N]`.
          layout: What the batches say of their rows.
        """
        steps, size = pairs_SN.shape
        if self.config.pack:
            items_SN, bins_SN = pack_steps(self._laid_out[pairs_SN], self.row_length)
            pairs_SN = np.take_along_axis(pairs_SN, items_SN, 1)
        else:
            bins_SN = np.broadcast_to(np.arange(size), (steps, size))
        # A row begins with every step, and wherever the bin is not that of the pair before.
        begins_SN = np.ones((steps, size), bool)
        begins_SN[:, 1:] = bins_SN[:, 1:] != bins_SN[:, :-1]
        first_R = np.flatnonzero(begins_SN)
        pairs_R = np.diff(first_R, append=steps * size)
        most = ceil_div(int(bins_SN.max()) + 1, self.rows)
        return replace(self._shape_of_rows(pairs_SN.ravel(), pairs_R, layout), microbatches=most)

    def _shape_of_rows(
        self, members: np.ndarray, pairs_R: np.ndarray, layout: Layout
    ) -> BatchShape:
        """Returns the smallest shape that holds some rows.

        Args:
          members: Indices of their pairs, row after row.
          pairs_R: How many pairs each row has.
          layout: What the batches say of their rows.
        """
        # All rows lie one after the other in flat arrays, so that a sum over each is one call:
        # R rows of N pairs in all, of which row r's begin at first_R[r].
        first_R = np.cumsum(pairs_R) - pairs_R
        lengths_N3 = self.lengths[members].astype(np.int64)

        def most(values_N: np.ndarray) -> int:
            """Returns the largest sum over a row."""
            return int(np.add.reduceat(values_N, first_R).max())

        shape = BatchShape(
            rows=self.rows,
            row_length=self.row_length,
            pairs=int(pairs_R.max()),
            scores=most(lengths_N3[:, 1:].sum(1)),
        )
        width = self.sequence_width
        match layout:
            case "plain":
                return shape
            case "tiles":
                # A pair's place in its row: what lies before it, less what lies before the row.
                begin_N = np.cumsum(self._laid_out[members]) - self._laid_out[members]
                start_N = begin_N - np.repeat(begin_N[first_R], pairs_R)
                tiles_N = count_tiles(lengths_N3, start_N, self.config.share_prefix)
                return replace(shape, tiles=most(tiles_N))
            case "unpacked":
                sequences = most((lengths_N3[:, 1:] > 0).sum(1))
                return replace(shape, sequence_width=width, sequences=sequences, unpacked=True)
            case "sequences":
                # Each completion with its prompt; one that is missing needs no room.
                sizes_N2 = np.where(lengths_N3[:, 1:] > 0, lengths_N3[:, :1] + lengths_N3[:, 1:], 0)
                # A row of each, filled up with nothing: place 2p and 2p + 1 are its pair p's.
                row_N = np.repeat(np.arange(len(pairs_R)), pairs_R)
                place_N = np.arange(len(members)) - first_R[row_N]
                sizes_RP2 = np.zeros((len(pairs_R), shape.pairs, 2), np.int64)
                sizes_RP2[row_N, place_N] = sizes_N2
                _, bins = pack_steps(sizes_RP2.reshape(len(pairs_R), -1), width)
                return replace(shape, sequence_width=width, sequences=int(bins.max()) + 1)
            case _:
                assert_never(layout)

    @functools.cached_property
    def sequence_width(self) -> int:
        """Tokens of an attention row: the longest sequence's, rounded up to a multiple of 64."""
        longest = longest_sequence(self.lengths) if self.longest is None else self.longest
        return round_up(longest, 64)


def longest_sequence(lengths_N3: np.ndarray) -> int:
    """Returns the tokens of the longest prompt with a completion."""
    return int((lengths_N3[:, :1] + lengths_N3[:, 1:]).max())


@dataclass(frozen=True)
class TrainPlan:
    """Maps an optimizer step to its microbatches, with exactly `batch.size` pairs a step.

    The order is the concatenation of one permutation an epoch, each drawn from (seed, epoch), cut
    into steps; no pair is skipped at the end of an epoch.

    Attributes:
      packer: Lengths and packing of the training pairs.
      seed: Seed of the order.
      num_steps: Optimizer steps of the run.
    """

    packer: Packer
    seed: int
    num_steps: int

    def pairs(self, step: int) -> np.ndarray:
        """Returns the indices of step `step`'s pairs, i64 `[batch.size]`, in order."""
        return self._pairs_of(range(step, step + 1))[0]

    def _pairs_of(self, steps: range) -> np.ndarray:
        """Returns the indices of the pairs of consecutive steps, i64 `[S, batch.size]`."""
        size, count = self.packer.config.size, len(self.packer.lengths)
        stream = np.arange(steps.start * size, steps.stop * size)
        # A step that reaches over the end of an epoch, or a batch larger than the data, takes its
        # pairs from several permutations.
        parts, place = [], int(stream[0])
        while place <= stream[-1]:
            epoch, start = divmod(place, count)
            stop = min(count, start + int(stream[-1]) + 1 - place)
            parts.append(_epoch_order(self.seed, epoch, count)[start:stop])
            place += stop - start
        return np.concatenate(parts).astype(np.int64).reshape(len(steps), size)

    def microbatches(self, step: int) -> list[Microbatch]:
        """Returns the packed rows of step `step`."""
        return self.packer.microbatches(self.pairs(step))

    def shape(self, layout: Layout) -> BatchShape:
        """Returns the shape that holds every step of the run."""
        together = max(1, _TOGETHER // self.packer.config.size)
        return _covering(
            self.packer.shape_of_steps(
                self._pairs_of(range(first, min(first + together, self.num_steps))), layout
            )
            for first in range(0, self.num_steps, together)
        )


def scoring_microbatches(packer: Packer) -> Iterator[Microbatch]:
    """Yields every pair of the data set once, in microbatches, where the order has no meaning."""
    for start in range(0, len(packer.lengths), _SCORING_WINDOW):
        yield from packer.microbatches(
            range(start, min(start + _SCORING_WINDOW, len(packer.lengths)))
        )


def scoring_shape(packers: Sequence[Packer], layout: Layout) -> BatchShape:
    """Returns the shape that holds every microbatch of `scoring_microbatches` of several data sets.

    The packers must agree on rows, row length and longest sequence.
    """
    shapes = [
        packer.shape_of_steps(windows, layout)
        for packer in packers
        for windows in _scoring_windows(len(packer.lengths))
    ]
    # They are scored one by one.
    return replace(_covering(shapes), microbatches=1)


def _scoring_windows(count: int) -> Iterator[np.ndarray]:
    """Yields the windows of `scoring_microbatches`, many at a time, `[S, window]`."""
    whole = count - count % _SCORING_WINDOW
    for start in range(0, whole, _TOGETHER):
        yield np.arange(start, min(start + _TOGETHER, whole)).reshape(-1, _SCORING_WINDOW)
    if whole < count:
        yield np.arange(whole, count)[None]


def make_train_plan(packer: Packer, seed: int, epochs: float, max_steps: int | None) -> TrainPlan:
    """Plans `epochs` passes (rounded up to whole steps), or `max_steps` steps if those are fewer.

    Args:
      packer: Lengths and packing of the training pairs.
      seed: Seed of the order.
      epochs: Passes over the pairs, not necessarily whole.
      max_steps: Most optimizer steps, or None.

    Raises:
      UserError: If a step needs more pairs than there are.
    """
    count, size = len(packer.lengths), packer.config.size
    if size > count:
        raise UserError(
            f"batch.size is {size}, but there are only {count} TRAIN pairs; "
            f"set batch.size to {count} or less"
        )
    steps = ceil_div(int(np.ceil(count * epochs)), size)
    return TrainPlan(packer, seed, steps if max_steps is None else min(steps, max_steps))


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    # Philox is counter-based: its key alone, here (seed, epoch), determines the permutation, in any
    # process and after any restart.
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    # What `permutation(count)` gives, in half as much memory: there may be millions.
    order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    generator.shuffle(order)
    return order


def _covering(shapes: Iterable[BatchShape]) -> BatchShape:
    return functools.reduce(BatchShape.cover, shapes)

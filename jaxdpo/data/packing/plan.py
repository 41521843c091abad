"""The plan of a run: which pairs form optimizer step s, and how they are packed into rows.

The plan is a pure function of (lengths, seed, batch size, row length): it holds no state, so the
step number alone says what data comes next, in any process and after any restart.
"""

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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
# Steps, or windows, whose shape is computed together: enough that numpy's cost is in the numbers
# and not in its calls, few enough that a plan of a million pairs is never held as lists.
_TOGETHER = 256


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
    prompt, chosen, rejected = np.asarray(lengths_N3, np.int64).T
    prompts = 1 if share_prefix else 1 + (rejected > 0)
    return prompt * prompts + chosen + rejected


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
    laid_out = laid_out_lengths(lengths_N3, config.share_prefix)
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


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into bins: largest first, each into the fullest bin that still holds it.

    >>> best_fit_decreasing([3, 5, 2, 4], capacity=7)
    [[1, 2], [3, 0]]
    """
    # Larger items first, because a small one still fits where a large one no longer does. Packing
    # as tightly as can be is NP-hard. This needs at most 11/9 of the best number of bins where they
    # are many (Johnson, 1973), and leaves a few percent of padding on lengths of real pairs.
    bins: list[list[int]] = []
    count = len(sizes)
    # The free space of every bin, sorted, so that bisection finds the fullest bin that still holds
    # an item in O(log bins). Space and bin are one number, space * count + bin: there are at most
    # `count` bins, so it sorts by space and then by bin, and both are got back by division.
    room: list[int] = []
    # `sorted` is stable: items of one size keep their order, and the plan is the same everywhere.
    for item in sorted(range(count), key=sizes.__getitem__, reverse=True):
        taken = sizes[item] * count
        # The first number that is at least size * count + 0 has room for the item.
        place = bisect.bisect_left(room, taken)
        if place < len(room):
            best = room.pop(place)
            bins[best % count].append(item)
        else:
            best = capacity * count + len(bins)
            bins.append([item])
        # Taking size * count leaves the bin's own number in the remainder.
        bisect.insort(room, best - taken)
    return bins


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
        return laid_out_lengths(self.lengths, self.config.share_prefix)

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
        return _covering(self.shapes_of([microbatches], layout))

    def shapes_of(
        self, steps: Iterable[Sequence[Microbatch]], layout: Layout
    ) -> Iterator[BatchShape]:
        """Yields shapes that together hold the microbatches of each step, one for many steps."""
        steps = iter(steps)
        while together := list(itertools.islice(steps, _TOGETHER)):
            rows = [row for step in together for microbatch in step for row in microbatch]
            most = max(map(len, together))
            yield replace(self._shape_of_rows(rows, layout), microbatches=most)

    def _shape_of_rows(self, rows: Sequence[Row], layout: Layout) -> BatchShape:
        # All rows lie one after the other in flat arrays, so that a sum over each is one call:
        # R rows of N pairs in all, of which row r's begin at first_R[r].
        pairs_R = np.fromiter(map(len, rows), np.int64, len(rows))
        first_R = np.cumsum(pairs_R) - pairs_R
        members = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
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
                sizes = np.split(sizes_N2.ravel(), 2 * first_R[1:])
                bins = [len(best_fit_decreasing(row[row > 0].tolist(), width)) for row in sizes]
                return replace(shape, sequence_width=width, sequences=max(bins))
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
        size, count = self.packer.config.size, len(self.packer.lengths)
        stream = np.arange(step * size, (step + 1) * size)
        # A step that reaches over the end of an epoch, or a batch larger than the data, takes its
        # pairs from several permutations.
        epochs = stream // count
        return np.concatenate(
            [
                _epoch_order(self.seed, int(epoch), count)[stream[epochs == epoch] % count]
                for epoch in np.unique(epochs)
            ]
        )

    def microbatches(self, step: int) -> list[Microbatch]:
        """Returns the packed rows of step `step`."""
        return self.packer.microbatches(self.pairs(step))

    def shape(self, layout: Layout) -> BatchShape:
        """Returns the shape that holds every step of the run."""
        steps = map(self.microbatches, range(self.num_steps))
        return _covering(self.packer.shapes_of(steps, layout))


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
    return _covering(
        shape
        for packer in packers
        for shape in packer.shapes_of(([each] for each in scoring_microbatches(packer)), layout)
    )


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


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    # Philox is counter-based: its key alone, here (seed, epoch), determines the permutation, in any
    # process and after any restart.
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def _covering(shapes: Iterable[BatchShape]) -> BatchShape:
    return functools.reduce(BatchShape.cover, shapes)

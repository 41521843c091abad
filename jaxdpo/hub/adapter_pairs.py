"""Adapters of single linear maps, and the arrays that are formed from them when they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.arrays import Readable, Start, StartFactor, whole
from jaxdpo.hub.families import Span
from jaxdpo.hub.quantized import read_part
from jaxdpo.model.lora import LoraConfig, LoraParams, column_lengths
from jaxdpo.storage.lazy_array import Spans, Stored


class Pair(NamedTuple):
    """The adapter of one linear map in one layer.

    Attributes:
      a: `lora_A`, `[r, in]`.
      b: `lora_B`, `[out, r]`, which several maps may share.
      ranks: The ranks of the tensors that belong to this map.
      columns: The outputs of `b` that belong to this map; None for all.
      scale: Factor on `x @ a @ b`.
    """

    a: Readable
    b: Readable
    ranks: slice
    columns: Span | None
    scale: float

    @property
    def rank(self) -> int:
        """Number of ranks that belong to this map."""
        return self.ranks.stop - self.ranks.start


# Path of a linear map, such as "layers/attention/q", and layer ↦ its adapter.
Pairs = dict[str, dict[int, Pair]]


def block_diagonal(b: Readable, spans: list[Span | None], rank: int) -> bool:
    """Tells if each map of a module has ranks of its own: `b` is zero for the ranks of the others.

    Adapters of q, k and v by themselves are exported so. Reading each of them back with the ranks
    of all three would compute the same and triple the adapters at every round.

    Args:
      b: `lora_B` of the module, `[out, r]`.
      spans: The outputs of each map.
      rank: Ranks that each map would have.
    """
    matrix = whole(b)
    # Counted, which is one pass: rows of map k may differ from zero in its own ranks alone.
    for k, span in enumerate(spans):
        if span is None:
            return False
        rows = matrix[span.offset : span.offset + span.size]
        own = rows[:, k * rank : (k + 1) * rank]
        if np.count_nonzero(rows) != np.count_nonzero(own):
            return False
    # A fresh adapter is zero everywhere, and tells nothing about whose its ranks will be.
    return bool(matrix.any())


@dataclass(frozen=True)
class _Stacked:
    """Two factors side by side along their ranks, the second one negative in `B`."""

    first: Readable
    second: Readable
    axis: int
    sign: float
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.first.shape)
        shape[self.axis] += self.second.shape[self.axis]
        return tuple(shape)

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        both = [whole(self.first), self.sign * whole(self.second)]
        return np.concatenate(both, self.axis)[index]


def without_start(pair: Pair, kind: Literal["pissa", "olora"], weight: Readable) -> Pair:
    """Returns the pair of twice the rank that adds `B A − B₀ A₀` to the base as it is on disk.

    Args:
      pair: B A, trained on the base without B₀ A₀.
      kind: How A₀ and B₀ follow from the base's weight.
      weight: The base's weight, `[out, in]`.
    """
    # s (B A − B₀ A₀) = s [B, −B₀] [A; A₀]: twice the rank, and no change to the base.
    start = Start(weight, kind, pair.rank, pair.scale)
    a0, b0 = StartFactor(start, "A"), StartFactor(start, "B")
    a, b = _Stacked(pair.a, a0, 0, 1.0), _Stacked(pair.b, b0, 1, -1.0)
    return pair._replace(a=a, b=b, ranks=slice(0, 2 * pair.rank))


def reader(
    pairs: Mapping[int, Pair], which: Literal["a", "b"], scale: float
) -> Callable[[Spans], np.ndarray]:
    """Returns a function that reads a part of the stacked `a` or `b` of one linear map.

    Args:
      pairs: Layer ↦ its adapter.
      which: `a` `[L, in, r]` or `b` `[L, r, out]`.
      scale: The common scale; the ratio to a pair's own goes into `b`.
    """

    def read(spans: Spans) -> np.ndarray:
        layers, rows, columns = spans
        out = np.zeros([span.stop - span.start for span in spans], np.float32)
        for place, layer in enumerate(range(layers.start, layers.stop)):
            pair = pairs.get(layer)
            if pair is None:
                continue
            # Ranks beyond the pair's own stay zero.
            if which == "a":
                taken = slice(columns.start, min(columns.stop, pair.rank))
                if taken.stop > taken.start:
                    part = read_a(pair, rows, taken)
                    out[place, :, : taken.stop - taken.start] = part
            else:
                taken = slice(rows.start, min(rows.stop, pair.rank))
                if taken.stop > taken.start:
                    part = read_b(pair, taken, columns) * np.float32(pair.scale / scale)
                    out[place, : taken.stop - taken.start] = part
        return out

    return read


def read_a(pair: Pair, inputs: slice, ranks: slice) -> np.ndarray:
    """Reads a part of `a` of one linear map.

    Args:
      pair: The adapter.
      inputs: Which of the inputs.
      ranks: Which of the ranks, counted from the map's first.

    Returns:
      f32 `[inputs, ranks]`.
    """
    start = pair.ranks.start
    return pair.a.read((slice(ranks.start + start, ranks.stop + start), inputs)).T.astype("f4")


def read_b(pair: Pair, ranks: slice, outputs: slice) -> np.ndarray:
    """Reads a part of `b` of one linear map.

    Args:
      pair: The adapter.
      ranks: Which of the ranks, counted from the map's first.
      outputs: Which of the outputs, counted from the map's first.

    Returns:
      f32 `[ranks, outputs]`.
    """
    start, first = pair.ranks.start, 0 if pair.columns is None else pair.columns.offset
    moved = slice(outputs.start + first, outputs.stop + first)
    return pair.b.read((moved, slice(ranks.start + start, ranks.stop + start))).T.astype("f4")


# Path of a linear map, and layer ↦ DoRA's magnitudes, with the outputs that are the map's own.
Magnitudes = dict[str, dict[int, tuple[Readable, Span | None]]]


def magnitude_reader(
    pairs: Mapping[int, Pair], magnitudes: Mapping[int, tuple[Readable, Span | None]], kernel: Any
) -> Callable[[Spans], np.ndarray]:
    """Returns a function that reads a part of DoRA's stacked magnitudes `[L, outputs]`.

    Args:
      pairs: Layer ↦ its adapter.
      magnitudes: Layer ↦ its magnitudes.
      kernel: The base's kernels `[L, inputs, outputs]`.
    """

    def read(spans: Spans) -> np.ndarray:
        layers, columns = spans
        out = np.empty([span.stop - span.start for span in spans], np.float32)
        for place, layer in enumerate(range(layers.start, layers.stop)):
            if layer in pairs:
                vector, span = magnitudes[layer]
                first = 0 if span is None else span.offset
                out[place] = whole(vector)[columns.start + first : columns.stop + first]
            else:
                # A layer without an adapter keeps its kernel: its columns have their own lengths.
                inputs = slice(0, kernel.shape[1])
                weight = read_part(kernel, (slice(layer, layer + 1), inputs, columns))
                out[place] = np.asarray(column_lengths(weight))[0]
        return out

    return read


def check_stackable(first: LoraConfig, second: LoraConfig) -> None:
    """Raises UserError if two adapters of one base cannot be written as one: if one is DoRA's."""
    if first.use_dora or second.use_dora:
        raise UserError(
            "DoRA scales each output's weights, with what was added to them before, so it is no "
            "sum with another adapter; set export.lora=merged, or model.adapter=continue to train "
            "the adapter itself"
        )


def stacked(
    first: tuple[LoraParams, LoraConfig], second: tuple[LoraParams, LoraConfig]
) -> tuple[LoraParams, LoraConfig]:
    """Returns one adapter that adds what two add: side by side along their ranks.

        s₁ x A₁ B₁ + s₂ x A₂ B₂ = s₁ x [A₁ A₂] [B₁; s₂/s₁ B₂]

    Args:
      first: Adapters and their scale.
      second: Others of the same base, of any rank and targets.

    Raises:
      UserError: If one of them is DoRA's.
    """
    (lora, config), (added, added_config) = first, second
    check_stackable(config, added_config)
    ratio = np.float32(added_config.scale / config.scale)
    ranks = (config.rank, added_config.rank)

    def both(one: Any, other: Any) -> dict[str, Stored]:
        # A map that only one of them adapts has zeros for the ranks of the other.
        some = one or other
        layers, inputs, _ = some["a"].shape
        outputs = some["b"].shape[-1]
        a = np.zeros((layers, inputs, sum(ranks)), np.float32)
        b = np.zeros((layers, sum(ranks), outputs), np.float32)
        if one:
            a[..., : ranks[0]], b[:, : ranks[0]] = _all_of(one["a"]), _all_of(one["b"])
        if other:
            a[..., ranks[0] :], b[:, ranks[0] :] = _all_of(other["a"]), ratio * _all_of(other["b"])
        return {"a": _in_memory(a), "b": _in_memory(b)}

    layers: dict[str, Any] = {}
    for part in dict.fromkeys([*lora["layers"], *added["layers"]]):
        ones, others = lora["layers"].get(part, {}), added["layers"].get(part, {})
        layers[part] = {
            name: both(ones.get(name), others.get(name)) for name in dict.fromkeys([*ones, *others])
        }
    targets = tuple(sorted({name for linears in layers.values() for name in linears}))
    rank = sum(ranks)
    # The scale that both now have, whatever rule of the rank it came from.
    alpha = config.scale * rank
    changes = {"rank": rank, "alpha": alpha, "targets": targets, "use_rslora": False}
    return {"layers": layers}, config.model_copy(update=changes)


def _in_memory(array: np.ndarray) -> Stored:
    return Stored(array.shape, array.dtype, lambda spans: array[spans])


def _all_of(array: Any) -> np.ndarray:
    return read_part(array, tuple(slice(0, size) for size in array.shape))

"""Histograms of lengths as one SVG picture, on axes that can be compared."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from jaxdpo.devices.sizes import ceil_div
from jaxdpo.pages.svg import element, label, line, picture

_BINS = 30
# In the picture's own units: the plot, its margins for the labels, and the gap between plots. As
# wide as a phone shows it without shrinking.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 288, 110, 56, 22, 20
_STEP = _TOP + _HEIGHT + _BOTTOM


def histogram(values: np.ndarray, width: int, bins: int) -> np.ndarray:
    """Counts whole numbers in bins of equal width from 0.

    Args:
      values: i32 `[N]`, 0 or more and less than `width * bins`.
      width: Of a bin.
      bins: How many there are.

    Returns:
      i64 `[bins]`.
    """
    return np.bincount(values // width, minlength=bins)


def bin_counts(columns: Sequence[np.ndarray]) -> tuple[int, list[np.ndarray]]:
    """Counts all columns in the same bins.

    The bins come from the longest of all columns: with bins of their own, a short and a long one
    would look the same.

    Args:
      columns: i32 `[N]` each, 0 or more.

    Returns:
      The width of a bin, and the counts of each column, i64 `[bins]`.
    """
    longest = max((int(values.max(initial=0)) for values in columns), default=0)
    width = ceil_div(longest + 1, _BINS)
    bins = longest // width + 1
    return width, [histogram(values, width, bins) for values in columns]


def draw_histograms(columns: Sequence[tuple[str, np.ndarray]], unit: str, counted: str) -> Markup:
    """Draws a histogram of each column, one below the other, as SVG.

    All have the same bins and the same scales, so that a bar of one is compared with a bar of
    another by eye.

    Args:
      columns: The name and the values, i32 `[N]`, of each.
      unit: What the horizontal axis counts.
      counted: What the vertical axis counts.
    """
    width, counts = bin_counts([values for _, values in columns])
    named = [(name, each) for (name, _), each in zip(columns, counts, strict=True)]
    return draw_counts(named, width, unit, counted)


def draw_counts(
    columns: Sequence[tuple[str, np.ndarray]], width: int, unit: str, counted: str
) -> Markup:
    """Draws histograms that are counted already, on the same scales.

    Args:
      columns: The name and the counts, i64 `[bins]`, of each.
      width: Of a bin.
      unit: What the horizontal axis counts.
      counted: What the vertical axis counts.
    """
    most = max((int(each.max(initial=0)) for _, each in columns), default=0)
    plots = [
        _plot(name, each, width, max(most, 1), _STEP * i) for i, (name, each) in enumerate(columns)
    ]
    height = _STEP * len(columns) + 20
    middle = _LEFT + _WIDTH / 2
    turned = f"translate(12 {(height - 20) / 2}) rotate(-90)"
    labels = [
        label(middle, height - 4.0, f"{unit} (each bar: {width})"),
        element("text", counted, transform=turned, fill="currentColor", font_size="12",
                text_anchor="middle"),
    ]  # fmt: skip
    said = _in_words(columns, width, unit, counted)
    return picture(_LEFT + _WIDTH + 16, height, said, [*plots, *labels])


def _plot(name: str, counts: np.ndarray, width: int, most: int, top: int) -> Markup:
    base, bar = top + _TOP + _HEIGHT, _WIDTH / len(counts)
    parts = [label(_LEFT, top + 14.0, name, "start")]
    for tick in _ticks(most):
        y = base - _HEIGHT * tick / most
        parts.append(line(_LEFT, y, _LEFT + _WIDTH, y, opacity="0.15"))
        parts.append(label(_LEFT - 6.0, y + 4, f"{tick:,}", "end"))
    for i, count in enumerate(counts.tolist()):
        height = _HEIGHT * count / most
        said = element("title", f"{i * width} to {(i + 1) * width - 1}: {count:,}")
        parts.append(
            element("rect", said, x=_LEFT + i * bar, y=base - height, width=0.9 * bar,
                    height=height, fill="#2f7fd1")
        )  # fmt: skip
    end = width * len(counts)
    for tick in _ticks(end):
        parts.append(label(_LEFT + _WIDTH * tick / end, base + 14.0, f"{tick:,}"))
    return Markup("").join(parts)


def _ticks(end: int) -> list[int]:
    """Returns round numbers from 0 to `end`: three to seven of them, where `end` is 2 or more."""
    # Steps of 1, 2 or 5 times a power of ten are those that people count in.
    rough = max(end / 6, 1)
    power = 10 ** int(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return list(range(0, end + 1, step))


def _in_words(
    columns: Sequence[tuple[str, np.ndarray]], width: int, unit: str, counted: str
) -> str:
    said = []
    for name, each in columns:
        if not each.any():
            continue
        highest, longest = int(each.argmax()), len(np.trim_zeros(each, "b"))
        said.append(
            f"{name}: most {counted} have {highest * width} to {(highest + 1) * width - 1}, none "
            f"more than {longest * width - 1}"
        )
    return f"Histograms of {unit}. {'; '.join(said)}."

"""Figures with their intervals side by side, as an SVG picture: a row each, lying."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jaxdpo.pages.cells import figure
from jaxdpo.pages.svg import (
    COLOURS,
    Axis,
    axis_over,
    element,
    label,
    line,
    picture,
    round_step,
    tick_text,
)

_WIDTH, _LEFT, _RIGHT = 360, 12, 344
_ROW, _GROUP, _TOP, _BOTTOM = 22, 26, 34, 46


@dataclass(frozen=True)
class Bar:
    """One figure with its interval.

    Attributes:
      name: Whose figure it is.
      value: The figure; NaN where it is undefined.
      low: Lower end of its 95% interval, or NaN.
      high: Upper end, or NaN.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan


def draw_intervals(
    title: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]], share: bool = False
) -> Markup:
    """Draws groups of figures, each on the same scale, as dots with their intervals.

    Args:
      title: The name of what is drawn.
      unit: What the horizontal axis counts.
      groups: A heading and its figures, one below the other.
      share: Whether the figures are shares, on a scale from 0 to 100%.
    """
    bars = [bar for _, group in groups for bar in group]
    across = Axis(0.0, 1.0, _LEFT, _RIGHT)
    if not share:
        # From 0, so that lengths can be compared.
        across = axis_over(
            [0.0, *(x for b in bars for x in (b.value, b.low, b.high))], _LEFT, _RIGHT
        )
    height = _TOP + _GROUP * len(groups) + 2 * _ROW * len(bars) + _BOTTOM
    base = height - _BOTTOM
    parts = [label(_LEFT, 16, title, "start", font_weight="bold")]
    step = round_step(across.high - across.low)
    for tick in across.ticks():
        x, shown = across(tick), f"{tick:.0%}" if share else tick_text(tick, step)
        parts.append(line(x, _TOP, x, base, opacity="0.15"))
        parts.append(label(x, base + 17, shown, opacity="0.8"))
    parts.append(label((_LEFT + _RIGHT) / 2, base + 36, f"{unit}; lines are 95% intervals"))
    y = float(_TOP)
    for heading, group in groups:
        y += _GROUP
        parts.append(label(_LEFT, y - 8, heading, "start", font_weight="bold"))
        for number, bar in enumerate(group):
            parts += _bar(bar, number, across, y, share)
            y += 2 * _ROW
    parts.append(line(_LEFT, base, _RIGHT, base))
    return picture(_WIDTH, height, _in_words(title, groups, share), parts)


def _bar(bar: Bar, number: int, across: Axis, y: float, share: bool) -> list[Markup]:
    colour = COLOURS[number % len(COLOURS)]
    said = f"{bar.name}: {_text(bar, share)}"
    parts = [label(_LEFT, y + 12, said, "start")]
    if math.isnan(bar.value):
        return parts
    at = y + _ROW + 4
    parts.append(line(across(0.0) if across.low <= 0 else _LEFT, at, across(bar.value), at,
                      stroke=colour, stroke_width="8", opacity="0.45"))  # fmt: skip
    if not math.isnan(bar.low):
        parts.append(
            line(across(bar.low), at, across(bar.high), at, stroke=colour, stroke_width="2")
        )
        parts += [
            line(across(end), at - 6, across(end), at + 6, stroke=colour, stroke_width="2")
            for end in (bar.low, bar.high)
        ]
    parts.append(element("circle", cx=across(bar.value), cy=at, r="4.5", fill=colour))
    return parts


def _text(bar: Bar, share: bool) -> str:
    if math.isnan(bar.value):
        return "–"

    def shown(value: float) -> str:
        return f"{value:.0%}" if share else figure(value)

    if math.isnan(bar.low):
        return shown(bar.value)
    return f"{shown(bar.value)} ({shown(bar.low)} to {shown(bar.high)})"


def _in_words(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], share: bool) -> str:
    said = [
        f"{heading}: " + ", ".join(f"{bar.name} {_text(bar, share)}" for bar in group)
        for heading, group in groups
    ]
    return f"{title}, with 95% intervals. {'; '.join(said)}."

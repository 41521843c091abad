"""Curves over the steps of a run, as small SVG pictures."""

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

# As wide as a phone shows it without shrinking, so that its labels are read there.
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 348, 30, 176
# Points of a line that are drawn: two to a unit of the picture's width, which is all one can see.
_MOST_POINTS = 600
# Letters of a name in the legend: as many as a row has room for. Runs' names differ at their ends.
_LONGEST = 42
# A window of this share of the steps smooths a noisy curve, and leaves its shape.
_SMOOTHED = 0.05


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
      name: Its name in the legend; one without is not named there.
      points: (step, value), in the order of the steps.
      ends: (step, low, high) of 95% intervals.
      colour: Number of its colour.
      kind: "line"; "faint" for a raw curve behind a smoothed one; or "dots", joined by dashes.
      said: Its name in the picture's text alternative, if that is another; one that has neither
        is left out there.
    """

    name: str
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float, float]] = ()
    colour: int = 0
    kind: str = "line"
    said: str = ""


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the mean of each point and those before it, over a twentieth of all.

    >>> smoothed([(1, 1.0), (2, 3.0)])
    [(1, 1.0), (2, 3.0)]
    """
    window = max(1, round(_SMOOTHED * len(points)))
    found, total = [], 0.0
    for number, (step, value) in enumerate(points):
        total += value
        if number >= window:
            total -= points[number - window][1]
        found.append((step, total / min(number + 1, window)))
    return found


def draw_lines(
    title: str, unit: str, curves: Sequence[Curve], x_label: str = "optimizer step"
) -> Markup:
    """Draws curves over steps.

    Args:
      title: The name of what is drawn.
      unit: Its unit, beside the vertical axis.
      curves: The curves; points that are not finite are left out.
      x_label: What the horizontal axis counts.
    """
    steps = [step for curve in curves for step, _ in curve.points]
    across = Axis(min([0, *steps]), max([1, *steps]), _LEFT, _RIGHT)
    up = axis_over(_values(curves), _BOTTOM, _TOP)
    parts = [
        label(_LEFT, 16, title, "start", font_weight="bold"),
        *_axes(across, up, unit, x_label),
        *(part for curve in curves for part in _curve(curve, across, up)),
    ]
    legend, height = _legend([curve for curve in curves if curve.name])
    return picture(_WIDTH, height, _in_words(title, unit, curves), [*parts, *legend])


def _values(curves: Sequence[Curve]) -> list[float]:
    values = [value for curve in curves for _, value in curve.points if math.isfinite(value)]
    # An interval may be far wider than the curve is high, and still is what is known of it.
    return values + [end for curve in curves for _, low, high in curve.ends for end in (low, high)]


def _axes(across: Axis, up: Axis, unit: str, x_label: str) -> list[Markup]:
    parts = []
    step = round_step(up.high - up.low)
    for tick in up.ticks():
        y = up(tick)
        parts.append(line(_LEFT, y, _RIGHT, y, opacity="0.15"))
        parts.append(label(_LEFT - 6, y + 4, tick_text(tick, step), "end", opacity="0.8"))
    # Steps are whole numbers.
    step = max(1.0, round_step(across.high - across.low))
    for count in range(int(across.high / step) + 1):
        x = across(count * step)
        parts.append(line(x, _BOTTOM, x, _BOTTOM + 4))
        parts.append(label(x, _BOTTOM + 17, tick_text(count * step, step), opacity="0.8"))
    middle = (_TOP + _BOTTOM) / 2
    turned = f"translate(12 {middle:.0f}) rotate(-90)"
    return [
        *parts,
        line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM),
        line(_LEFT, _TOP, _LEFT, _BOTTOM),
        label((_LEFT + _RIGHT) / 2, _BOTTOM + 34, x_label),
        element("text", unit, transform=turned, fill="currentColor", font_size="12",
                text_anchor="middle"),
    ]  # fmt: skip


def _curve(curve: Curve, across: Axis, up: Axis) -> list[Markup]:
    colour = COLOURS[curve.colour % len(COLOURS)]
    points = thinned([p for p in curve.points if math.isfinite(p[1])])
    placed = [(across(step), up(value)) for step, value in points]
    parts = [
        line(across(step), up(low), across(step), up(high), stroke=colour, stroke_width="1.5")
        for step, low, high in curve.ends
    ]
    drawn = {"stroke": colour, "fill": "none", "stroke_width": "2", "stroke_linejoin": "round"}
    if curve.kind == "faint":
        drawn |= {"opacity": "0.35", "stroke_width": "1"}
    if curve.kind == "dots":
        # Not by colour alone: dots and dashes tell TEST from TRAIN in print too.
        drawn |= {"stroke_dasharray": "4 3", "stroke_width": "1.5"}
        parts += [element("circle", cx=x, cy=y, r="3", fill=colour) for x, y in placed]
    if len(placed) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(element("polyline", points=path, **drawn))
    elif placed and curve.kind != "dots":
        parts.append(element("circle", cx=placed[0][0], cy=placed[0][1], r="2", fill=colour))
    return parts


def thinned(
    points: Sequence[tuple[float, float]], most: int = _MOST_POINTS
) -> list[tuple[float, float]]:
    """Returns the lowest and the highest point of each stretch, where there are too many to see.

    Args:
      points: (step, value), in order.
      most: Points to keep at most.
    """
    if len(points) <= most:
        return list(points)
    kept: list[tuple[float, float]] = []
    size = -(-2 * len(points) // most)
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        # A single spike is what one looks for; a mean, or every tenth point, would hide it.
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _legend(curves: Sequence[Curve]) -> tuple[list[Markup], float]:
    """Returns the names of the curves, in as many rows as they need, and the picture's height."""
    parts, x, y = [], float(_LEFT), _HEIGHT - 10.0
    for curve in curves:
        colour = COLOURS[curve.colour % len(COLOURS)]
        dashes = "4 3" if curve.kind == "dots" else ""
        name = curve.name if len(curve.name) <= _LONGEST else f"…{curve.name[1 - _LONGEST :]}"
        # Letters of this size are about 6.4 units wide.
        width = 38 + 6.4 * len(name)
        if x > _LEFT and x + width > _WIDTH:
            x, y = float(_LEFT), y + 16
        parts.append(line(x, y, x + 20, y, stroke=colour, stroke_width="2.5",
                          stroke_dasharray=dashes))  # fmt: skip
        parts.append(label(x + 25, y + 4, name, "start"))
        x += width
    return parts, y + 10


def _in_words(title: str, unit: str, curves: Sequence[Curve]) -> str:
    said = []
    for curve in curves:
        points = [point for point in curve.points if math.isfinite(point[1])]
        name = curve.said or curve.name
        if not points or not name:
            continue
        (first, begin), (last, end) = points[0], points[-1]
        text = f"{name} from {figure(begin)} at step {first:g}"
        if len(points) > 1:
            text += f" to {figure(end)} at step {last:g}"
        if curve.ends and curve.ends[-1][0] == last:
            text += f" (95% interval {figure(curve.ends[-1][1])} to {figure(curve.ends[-1][2])})"
        said.append(text)
    return f"{title}, in {unit}: {'; '.join(said) or 'nothing yet'}."

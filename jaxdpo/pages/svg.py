"""Elements, scales and colours of plots as SVG.

A plot takes the colour of the text around it for its axes and labels, so that it is read on a light
and on a dark page alike; the colours of the data are in between.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from jaxdpo.printable import visible

# Apart for people who see no red or green (after Okabe and Ito), and each at least 3 : 1 against
# white and against the dark page.
COLOURS = ("#2f7fd1", "#d0661a", "#16926a", "#b964a0", "#8a7a1f", "#7a7f8c")


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to places in the picture.

    Attributes:
      low: The value at `start`.
      high: The value at `end`.
      start: Place of the lowest value.
      end: Place of the highest.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Returns the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Returns round values within the scale."""
        step = round_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [count * step for count in range(first, last + 1)]


def axis_over(values: Iterable[float], start: float, end: float) -> Axis:
    """Returns a scale that holds all values, with a little room on both sides.

    Args:
      values: The values; those that are not finite are left out.
      start: Place of the lowest value.
      end: Place of the highest.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        # One value alone has no scale of its own.
        half = max(abs(low) / 2, 0.5)
        low, high = low - half, high + half
    room = 0.04 * (high - low)
    # What is never negative, such as a share, has no room below zero.
    floor = 0.0 if finite and min(finite) >= 0 else -math.inf
    return Axis(max(floor, low - room), high + room, start, end)


def round_step(span: float, ticks: int = 5) -> float:
    """Returns a step of 1, 2 or 5 times a power of ten that divides a span into about `ticks`."""
    rough = span / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough)


def tick_text(value: float, step: float) -> str:
    """Writes a tick with as many digits as its neighbours need to differ.

    Args:
      value: The tick.
      step: The distance between ticks.
    """
    if abs(value) >= 1e5 or step < 1e-3:
        # Python pads exponents: 1e-05.
        return "0" if abs(value) < step / 2 else f"{value:.2g}".replace("e-0", "e-")
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{digits}f}"


def element(tag: str, content: str | Markup = "", **attributes: str | float) -> Markup:
    """Returns an element; underscores in names of attributes stand for dashes.

    Args:
      tag: Its name.
      content: Text, or elements.
      attributes: Its attributes, without those that are empty.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"),
            f"{value:.1f}" if isinstance(value, float) else visible(str(value)),
        )
        for name, value in attributes.items()
        if value != ""
    )
    inside = content if isinstance(content, Markup) else escape(visible(content))
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inside)


def label(x: float, y: float, text: str, anchor: str = "middle", **more: str | float) -> Markup:
    """Returns a text in the colour of the page's own.

    Args:
      x: Where it stands.
      y: Its base line.
      text: The text.
      anchor: Which part of it stands at `x`: start, middle or end.
      more: Further attributes.
    """
    return element("text", text, x=x, y=y, fill="currentColor", font_size="12",
                   text_anchor=anchor, **more)  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, **more: str | float) -> Markup:
    """Returns a straight line.

    Args:
      x1: Where it begins.
      y1: Where it begins.
      x2: Where it ends.
      y2: Where it ends.
      more: Further attributes; without a colour it has the text's.
    """
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **{"stroke": "currentColor", **more})


def picture(width: float, height: float, said: str, parts: Sequence[Markup]) -> Markup:
    """Returns a whole picture, as wide as its place on the page allows.

    Args:
      width: Width in its own units.
      height: Height in its own units.
      said: The picture in words, for whoever does not see it.
      parts: Its elements.
    """
    return element(
        "svg",
        Markup("").join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_="plot",
        # In a notebook there is no style sheet of ours.
        style=f"width:100%;max-width:{1.5 * width:g}px",
        font_family="system-ui, sans-serif",
        aria_label=said,
    )

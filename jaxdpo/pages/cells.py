"""Tables of a page, and the numbers in their cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from jaxdpo.printable import visible


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
      caption: A sentence above it, for somebody who is no statistician.
      header: Names of the columns.
      rows: Cells: text, or markup of this module.
      sortable: Whether a click on a column's name sorts the rows.
      tall: Whether it has more rows than a page should be long, and scrolls within itself.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = False
    tall: bool = False


def number(value: float | None, shown: str | None = None) -> Markup:
    """Returns a number as it is read, with its exact value beside it for programs.

    >>> number(0.69314718)
    Markup('<data value="0.69314718">0.6931</data>')

    Args:
      value: The number; None and NaN are shown as a dash.
      shown: Its text; by default four digits.
    """
    if value is None or math.isnan(value):
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(value), shown or figure(value))


def interval(value: float, low: float | None, high: float | None) -> Markup:
    """Returns a number and its 95% interval.

    Args:
      value: The number.
      low: Lower end, or None where it is unknown.
      high: Upper end, or None.
    """
    if low is None or high is None:
        return number(value)
    return Markup('{} <span class="interval">({} to {})</span>').format(
        number(value), number(low), number(high)
    )


def figure(value: float) -> str:
    """Writes a number with four digits, and whole numbers in full.

    >>> figure(1234567), figure(0.000012345), figure(-1.5)
    ('1,234,567', '1.234e-05', '-1.5')
    """
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def text_block(text: str, most: int | None = None) -> Markup:
    """Returns text as it stands, its line ends kept; a longer one says how much is left out.

    Args:
      text: What somebody or a model wrote.
      most: Characters that are shown; None for all.
    """
    rest = 0 if most is None else max(0, len(text) - most)
    shown = visible(text if not rest else text[:most])
    more = Markup(' <span class="muted">… and {} characters more</span>').format(f"{rest:,}")
    return Markup('<div class="text">{}{}</div>').format(escape(shown), more if rest else "")


def plural(word: str, count: int) -> str:
    """Returns a word as it stands behind a count."""
    return word if count == 1 else f"{word}s"

"""Wraps the text of usage and help to the width of the terminal."""

import shutil
import textwrap
from collections.abc import Sequence

_FALLBACK = 100  # columns, where the output goes to no terminal


def wrapped(text: str, depth: int, hanging: int = 0) -> list[str]:
    """Returns a text in lines of the terminal's width.

    Args:
      text: The text, one paragraph.
      depth: Steps of two columns that all lines are indented by.
      hanging: Further steps, of all lines but the first.
    """
    return _wrap(text, "  " * depth, "  " * (depth + hanging))


def _wrap(text: str, first: str, rest: str) -> list[str]:
    width = max(40, shutil.get_terminal_size((_FALLBACK, 24)).columns)
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        # A key or a path that is broken in two can't be copied.
        break_long_words=False,
        break_on_hyphens=False,
    )


def paragraphs(text: str) -> str:
    """Returns a text wrapped to the terminal's width; lines that begin with a space stay lines."""
    lines: list[str] = []
    flowing: list[str] = []
    # The empty line at the end lets the last paragraph flow out as all others do.
    for line in [*text.strip().splitlines(), ""]:
        if line and not line.startswith(" "):
            flowing.append(line)
            continue
        lines += wrapped(" ".join(flowing), 0)
        flowing = []
        lines += wrapped(line.strip(), 1, hanging=2) or [""]
    return "\n".join(lines).strip()


def usage(forms: Sequence[str]) -> str:
    """Returns the lines that say how a command is called, a form a line where they fit."""
    lines: list[str] = []
    for form in forms:
        lines += _wrap(form, "       " if lines else "usage: ", "         ")
    return "\n".join(lines)

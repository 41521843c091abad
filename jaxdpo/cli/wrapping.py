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
    width = max(40, shutil.get_terminal_size((_FALLBACK, 24)).columns)
    first = "  " * depth
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=first + "  " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def paragraphs(text: str) -> str:
    """Returns a text wrapped to the terminal's width; lines that begin with a space stay lines."""
    lines: list[str] = []
    flowing: list[str] = []
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
    lines = wrapped(f"usage: {forms[0]}", 0, hanging=4)
    for form in forms[1:]:
        lines += [f"       {line}".rstrip() for line in wrapped(form, 0, hanging=1)]
    return "\n".join(lines)

"""Makes text of data, models and judges plain text, wherever it is shown."""

from rich.markup import escape

# C0 and C1 control characters and DEL, but for the tab and the end of a line. ESC begins the
# commands of a terminal, which could clear the screen or rename the window.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


def visible(text: str) -> str:
    """Returns text with its control characters written out.

    >>> visible("a\\x1b[2J")
    'a\\\\x1b[2J'
    """
    return text.translate(_CONTROLS)


def plain(text: str) -> str:
    """Returns text that rich and a terminal show as it stands: neither markup nor a command.

    >>> plain("[red] \\x1b[2J")
    '\\\\[red] \\\\x1b[2J'
    """
    return escape(visible(text))

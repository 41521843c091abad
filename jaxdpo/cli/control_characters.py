"""Makes control characters visible, wherever text of data, models and judges is shown."""

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

"""Makes text of data, models and judges plain text for rich, which reads [brackets] as markup."""

from rich.markup import escape

from jaxdpo.printable import visible


def plain(text: str) -> str:
    """Returns text that rich and a terminal show as it stands: neither markup nor a command.

    >>> plain("[red] \\x1b[2J")
    '\\\\[red] \\\\x1b[2J'
    """
    return escape(visible(text))

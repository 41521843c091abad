"""The one exception for what a user can fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input that the user can fix.

    The message says what is wrong, where (file, line, field), the value, and the remedy. Commands
    print it alone, without a traceback, and exit with status 2; from Python it is an ordinary
    exception.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which known name was probably meant: `"; did you mean 'beta'?"`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

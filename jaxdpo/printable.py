"""The one place where text of data, models, judges and servers is made fit to be shown.

A terminal obeys what it is sent: ESC begins commands that clear the screen, rename the window or
answer as if the user had typed, and controls of the writing direction (CVE-2021-42574) show text in
an order that is not its own. So nothing is printed but by `show`, or by `jaxdpo.cli.console`, which
both write such characters out.
"""

import logging
import sys
import traceback
import warnings
from types import TracebackType

# C0 and C1 control characters and DEL, but for the tab and the end of a line.
_CONTROLS = (*range(32), *range(127, 160))
# Embeddings, overrides and isolates, which reorder what follows; separators of lines that some
# terminals and most editors take for ends of lines.
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SEPARATORS = (0x2028, 0x2029)
# Halves of characters, which JSON may hold and no output encodes.
_SURROGATES = range(0xD800, 0xE000)
_SHOWN = {
    **{code: f"\\x{code:02x}" for code in _CONTROLS if code not in (9, 10)},
    **{code: f"\\u{code:04x}" for code in (*_BIDI, *_SEPARATORS, *_SURROGATES)},
}


def visible(text: str) -> str:
    """Returns text with the characters written out that a terminal or a page would obey.

    >>> visible("a\\x1b[2J \\u202eb")
    'a\\\\x1b[2J \\\\u202eb'
    """
    return text.translate(_SHOWN)


def show(text: str, error: bool = False) -> None:
    """Prints a line of any text.

    Args:
      text: The text; newlines in it stay.
      error: Whether it goes to stderr.
    """
    print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)


def show_everything_visibly() -> None:
    """Makes the log, warnings and tracebacks of this process printable, and its output tolerant.

    What a terminal's encoding lacks is written out as well, instead of ending the command.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # A notebook's streams have none, and need none.
            reconfigure(errors="backslashreplace")
    log = logging.StreamHandler()
    log.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    # Does nothing where a program has set up its log already.
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    written = warnings.formatwarning
    warnings.formatwarning = lambda *words, **named: visible(written(*words, **named))
    sys.excepthook = _show_traceback


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    show("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)

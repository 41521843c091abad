"""Runs a command: its usage and help, its exit status, and what Ctrl-C does.

A command's module imports nothing heavy until its `main` runs. So a mistake is one message and
status 2, and Ctrl-C one line and status 130, from the first import on.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from jaxdpo.cli.wrapping import paragraphs, usage
from jaxdpo.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from jaxdpo.cli.arguments import Arguments

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
_INTERRUPTED = "interrupted; run the same command again to continue"


@dataclass(frozen=True)
class Command:
    """A command as its user sees it.

    Attributes:
      name: The word after `jaxdpo`.
      summary: A line for the list of commands.
      synopsis: Words that may follow the name; a line for each form.
      about: A paragraph of help.
      positionals: Keys of the words that may stand without one, in order; "…" after the last one
        lets it take several.
      tail: The option that all words after belong to.
    """

    name: str
    summary: str
    synopsis: tuple[str, ...]
    about: str
    positionals: tuple[str, ...] = ()
    tail: str | None = None

    def usage(self) -> str:
        """Returns how the command is called, and a paragraph of what it does."""
        forms = [f"python -m jaxdpo.{self.name} {words}" for words in self.synopsis]
        short = f"jaxdpo {self.name} is short for python -m jaxdpo.{self.name}"
        return f"{usage([*forms, short])}\n\n{paragraphs(self.about)}\n"

    @contextlib.contextmanager
    def loading(self, arguments: list[str]) -> Iterator[None]:
        """Guards the imports of a command, before which it answers what needs none of them.

        Args:
          arguments: The words after the command's name.

        Raises:
          SystemExit: With status 0 after `--version`, with 2 after the usage where no argument is
            given.
        """
        if "--version" in arguments:
            show_version()
        if not arguments:
            print(f"{self.usage()}\n--help shows every field.", file=sys.stderr)
            raise SystemExit(2)
        with quiet_interrupts():
            yield

    def read(self, arguments: list[str], *models: "type[BaseModel]") -> "Arguments":
        """Reads the command line, or shows the help and ends the process.

        Args:
          arguments: The words after the command's name.
          models: Configurations that the command reads, each for a form of it.

        Raises:
          SystemExit: With status 0, after `--help`.
          UserError: For a misspelt option, an option without its value, or a word too many.
        """
        from jaxdpo.cli.arguments import read_arguments
        from jaxdpo.cli.fields import flag_names
        from jaxdpo.cli.help import fields_help

        # After the tail's option, `--help` is a value like any other.
        own = arguments
        if self.tail is not None and self.tail in arguments:
            own = arguments[: arguments.index(self.tail)]
        if {"-h", "--help"} & set(own):
            print(self.usage())
            print("\n\n".join(fields_help(model) for model in models))
            raise SystemExit(0)
        flags = set().union(*(flag_names(model) for model in models))
        return read_arguments(arguments, self.positionals, flags, self.tail)


def show_version() -> None:
    """Prints the version and ends the process.

    Raises:
      SystemExit: With status 0.
    """
    from jaxdpo import __version__

    print(f"jaxdpo {__version__}")
    raise SystemExit(0)


def run_command(main: Callable[[list[str]], str | None]) -> int:
    """Runs a command's `main` on the process's arguments and returns the exit status.

    Args:
      main: Takes the arguments; returns the command that its user types next, if there is one.
    """
    begun = time.monotonic()
    # Without torch, which nothing here needs, transformers advises to install it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Whatever the user can fix is a UserError; any other exception is a defect, and its traceback
    # is the report of it.
    try:
        following = main(sys.argv[1:])
        _say_ending(time.monotonic() - begun, following)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        # Threads are still being joined at exit; a second Ctrl-C need not wait for them.
        _on_interrupt(_leave)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _say_ending(seconds: float, following: str | None) -> None:
    from jaxdpo.cli.control_characters import visible
    from jaxdpo.cli.ending import ending
    from jaxdpo.devices.cluster import is_first

    said = ending(seconds, following)
    # Eight processes on a machine would say eight times what to type next.
    if said is not None and is_first(os.environ):
        print(visible(said))


@contextlib.contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Makes Ctrl-C end the process at once, with one line, while the block runs.

    Within an import, a KeyboardInterrupt does not always arrive: C extensions print it and raise
    an ImportError in its place. Nothing is unfinished then, so the process may simply end.
    """
    before = _on_interrupt(_leave)
    try:
        yield
    finally:
        if before is not None:
            _on_interrupt(before)


def _leave(signum: int, frame: FrameType | None) -> None:
    # Neither print nor sys.exit: the interpreter may be in the middle of either.
    os.write(2, b"interrupted\n")
    os._exit(130)


def _on_interrupt(handler: _Handler) -> _Handler:
    """Sets what Ctrl-C does; returns what it did, or None outside the main thread."""
    # Python sets signal handlers in the main thread alone; a notebook may call from another.
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGINT, handler)

"""Runs a command: its usage and help, its exit status, and what Ctrl-C does.

A command's module imports nothing heavy until its `main` runs. So a mistake is one message and
status 2, and Ctrl-C one line and status 130, from the first import on.
"""

import contextlib
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
from jaxdpo.errors import UserError, explained
from jaxdpo.printable import show, show_everything_visibly

if TYPE_CHECKING:
    from pydantic import BaseModel

    from jaxdpo.cli.arguments import Arguments

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
_STOPS = (signal.SIGTERM, signal.SIGHUP)
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
            show(f"{self.usage()}\n--help shows every field.", error=True)
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
            show(self.usage())
            show("\n\n".join(fields_help(model) for model in models))
            raise SystemExit(0)
        flags = set().union(*(flag_names(model) for model in models))
        return read_arguments(arguments, self.positionals, flags, self.tail)


def show_version() -> None:
    """Prints the version and ends the process.

    Raises:
      SystemExit: With status 0.
    """
    from jaxdpo import __version__

    show(f"jaxdpo {__version__}")
    raise SystemExit(0)


def run_command(main: Callable[[list[str]], str | None]) -> int:
    """Runs a command's `main` on the process's arguments and returns the exit status.

    Args:
      main: Takes the arguments; returns the command that its user types next, if there is one.
    """
    with _signals_as_exceptions():
        return _run(main)


def _run(main: Callable[[list[str]], str | None]) -> int:
    begun = time.monotonic()
    # Without torch, which nothing here needs, transformers advises to install it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    show_everything_visibly()
    # Whatever the user can fix is a UserError, or what the system refused; any other exception is a
    # defect, and its traceback is the report of it.
    try:
        following = main(sys.argv[1:])
        _say_ending(time.monotonic() - begun, following)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except UserError as error:
        show(f"error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        show(_INTERRUPTED, error=True)
        # Threads are still being joined at exit; a second Ctrl-C need not wait for them.
        _on_signals(_leave, (signal.SIGINT,))
        return 130
    except _Stopped as stopped:
        show(f"{stopped}: stopped; run the same command again to continue", error=True)
        return 128 + stopped.number
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        refused = explained(error)
        if refused is None:
            raise
        show(f"error: {refused}", error=True)
        return 2
    return 0


def _say_ending(seconds: float, following: str | None) -> None:
    from jaxdpo.cli.ending import ending
    from jaxdpo.devices.cluster import is_first

    said = ending(seconds, following)
    # Eight processes on a machine would say eight times what to type next.
    if said is not None and is_first(os.environ):
        show(said)


@contextlib.contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Makes a signal end the process at once, with one line, while the block runs.

    Within an import, an exception does not always arrive: C extensions print it and raise an
    ImportError in its place. Nothing is unfinished then, so the process may simply end.
    """
    before = _on_signals(_leave, (signal.SIGINT, *_STOPS))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stopped(BaseException):
    """A signal that asks to stop, raised where the main thread is, so that what is open is closed.

    Not an Exception, which the program may be prepared to survive.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the block as Ctrl-C does; a second one ends the process at once.

    Training notes signals in its own way, while its steps run.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _on_signals(_leave, tuple(before))
        raise _Stopped(number)

    before: dict[int, Any] = {}
    before |= _on_signals(stop, _STOPS)
    try:
        yield
    finally:
        for number, handler in before.items():
            # Threads are still being joined when a stopped command ends; a second signal need not
            # wait for them.
            if signal.getsignal(number) is not _leave:
                signal.signal(number, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    # Neither print nor sys.exit: the interpreter may be in the middle of either.
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


def _on_signals(handler: _Handler, numbers: tuple[int, ...]) -> dict[int, Any]:
    """Sets what signals do; returns what they did before, by number.

    One that is ignored stays so, as under `nohup`; outside the main thread, where Python sets no
    handlers, all stay as they are. A notebook may call from another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }

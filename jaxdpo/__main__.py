"""`jaxdpo COMMAND …` or `python -m jaxdpo COMMAND …`: runs a command, or lists them all."""

import importlib
import sys

from jaxdpo.cli.command import run_command, show_version
from jaxdpo.errors import UserError, nearest
from jaxdpo.printable import show

# In the order of a project: look at the data, align, and see what came of it.
COMMANDS = (
    *("init", "inspect", "studio", "collect", "train", "prefer", "iterate"),
    *(
        "sample",
        "score",
        "evaluate",
        "report",
        "convert",
        "push",
        "plan",
        "serve",
        "cache",
        "use_cases",
    ),
)


def main(arguments: list[str]) -> str | None:
    """Runs the command that the first argument names; without one, lists all.

    Returns:
      The command that is typed next, if there is one.

    Raises:
      UserError: If there is no command of this name.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        show(listing())
        return None
    name, *rest = arguments
    if name == "--version":
        show_version()
    if name not in COMMANDS:
        raise UserError(
            f"{name}: there is no such command{nearest(name, COMMANDS)}; there are "
            f"{', '.join(COMMANDS)}"
        )
    return _module(name).main(rest)


def listing() -> str:
    """Returns the list of commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_module(name).COMMAND.summary}" for name in COMMANDS]
    usage = "usage: jaxdpo COMMAND [field=value …]        (or python -m jaxdpo.COMMAND …)"
    return "\n".join([usage, "", *lines, "", "jaxdpo COMMAND --help shows every field."])


def _module(name: str):
    # A package of its own is run by its __main__.
    main = ".__main__" if name == "use_cases" else ""
    return importlib.import_module(f"jaxdpo.{name}{main}")


def console() -> int:
    """Runs the console script and returns its exit status."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(console())

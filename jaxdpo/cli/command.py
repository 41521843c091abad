"""How every command ends: a user's mistake is one message and status 2, never a traceback."""

import logging
import os
import sys
from collections.abc import Callable

from jaxdpo.errors import UserError


def run_command(main: Callable[[list[str]], None]) -> int:
    """Runs a command's `main` on the process's arguments and returns the exit status."""
    # Without torch, which nothing here needs, transformers advises to install it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0

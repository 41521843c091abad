"""Commands as forked processes: with all modules imported once, a trial takes seconds less."""

import atexit
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# Statuses that no command has.
HUNG = 1000


def import_everything(modules: Sequence[str]) -> None:
    """Imports what commands import while they run; JAX starts no device by it."""
    for name in (*modules, "orbax.checkpoint", "tensorboardX", "matplotlib.figure", "grain"):
        importlib.import_module(name)
    for name in ("jaxdpo.runs.fit", "jaxdpo.runs.convert", "jaxdpo.rounds.make_pairs"):
        importlib.import_module(name)
    for name in ("jaxdpo.rounds.evaluate", "jaxdpo.runs.score_pairs", "jaxdpo.runs.inspection"):
        importlib.import_module(name)


def start(
    module: str, words: Sequence[str], output: Path, before: Callable[[], None] = lambda: None
) -> int:
    """Starts a command in a process of its own, and returns the number of that.

    Args:
      module: The command's module.
      words: Its arguments.
      output: Gets what it writes to stdout and stderr, the latter in a file with `.err` added.
      before: Called in the process, before the command.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        for number, name in ((1, output), (2, Path(f"{output}.err"))):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        before()
        os._exit(_run(module, words))
    except BaseException:  # noqa: BLE001 - the child must never return into the parent's code
        traceback.print_exc()
        os._exit(99)


def _run(module: str, words: Sequence[str]) -> int:
    from jaxdpo.cli.command import run_command

    sys.argv = [module, *words]
    try:
        status = run_command(importlib.import_module(module).main)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        status = 1
    # The rest of what the interpreter does at its end.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def finish(process: int, seconds: float = 600.0) -> int:
    """Waits for a process; returns its status, negative for a signal, or HUNG.

    Args:
      process: From `start`.
      seconds: After which it is killed.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return HUNG

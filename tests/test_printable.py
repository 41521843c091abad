"""Text of data, models and judges is shown on a terminal, and never obeyed by it."""

import ast
import io
import logging
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.console import Console

import jaxdpo
from jaxdpo.cli.console import Reporter
from jaxdpo.printable import show, visible

PACKAGE = Path(jaxdpo.__file__).parent
# Renames the window, clears the screen, colours, a C1 command, an override and an isolate.
HOSTILE = "\x1b]0;PWN\x07 \x1b[2J \x1b[31mred \x9b31m \u202egnp \u2067x\u2069 \x08\r\x00\x7f"


def harmful(text: str) -> set[str]:
    """Characters of Unicode's own classes that a terminal obeys, but for newlines and tabs."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        char
        for char in text
        if (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t")
        or unicodedata.bidirectional(char) in bidi
    }


def test_every_character_that_a_terminal_obeys_is_written_out():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert harmful(every) and not harmful(visible(every))
    # All others stay as they are: letters of every script, marks, and joiners of emoji.
    kept = "".join(char for char in every if not harmful(char))
    assert visible(kept) == kept


def test_show(capsys):
    show(f"a {HOSTILE}\nb")
    show(HOSTILE, error=True)
    for text in capsys.readouterr():
        assert "\\x1b]0;PWN\\x07" in text and "\\u202e" in text and not harmful(text)


def test_all_that_a_reporter_shows():
    reporter, out = Reporter(), io.StringIO()
    reporter.console = Console(file=out, force_terminal=True, soft_wrap=True, highlight=False)
    reporter.named(HOSTILE).say(HOSTILE)
    reporter.table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, "[red]x[/red]")])
    with reporter.phase(HOSTILE), reporter.bar(HOSTILE, 2) as advance:
        advance(1)
    shown = out.getvalue()
    # Rich's own commands colour a title; none is of the text's.
    for command in (
        "\x1b]0;PWN",
        "\x1b[2J",
        "\x1b[31m",
        "\x9b",
        "\u202e",
        "\u2067",
        "\x08",
        "\x00",
    ):
        assert command not in shown, repr(command)
    assert "[red]x[/red]" in shown


@pytest.mark.parametrize(
    "code",
    [
        f"raise UserError({HOSTILE!r})",
        f"raise OSError(28, 'full', {HOSTILE!r})",
        f"raise RuntimeError({HOSTILE!r})",
        f"logging.getLogger('x').warning('%s', {HOSTILE!r})",
        f"warnings.warn({HOSTILE!r})",
        f"return {HOSTILE!r}",
        # An output that lacks a character must not end the command.
        "show('π')",
    ],
)
def test_errors_logs_warnings_and_tracebacks_of_a_command(code):
    script = f"""
import logging, sys, warnings
from jaxdpo.cli.command import run_command
from jaxdpo.errors import UserError
from jaxdpo.printable import show
def main(arguments):
    {code}
sys.exit(run_command(main))
"""
    found = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", script],
        env={"PYTHONPATH": str(PACKAGE.parent), "PYTHONIOENCODING": "ascii", "HOME": "/tmp"},
        capture_output=True,
    )
    shown = (found.stdout + found.stderr).decode("latin-1")
    assert not harmful(shown), shown
    assert "x1b]0;PWN" in shown or "\\u03c0" in shown


def test_nothing_is_printed_but_through_the_one_place():
    """`print` and rich's own printing stand in the modules that make text printable alone."""
    allowed = {"printable.py", "cli/console.py", "cli/progress.py", "devices/supervisor.py"}
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                prints = called == "print" or called.endswith("console.print")
                assert not prints or name in allowed, f"{name}:{node.lineno}: use show or Reporter"


def test_the_log_and_warnings_of_this_process_are_left_alone():
    before = (logging.getLogger().handlers[:], warnings.formatwarning)
    show("x")
    assert (logging.getLogger().handlers[:], warnings.formatwarning) == before

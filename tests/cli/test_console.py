"""Progress on a screen and in a log file, and what a command says at its end."""

import io
import re
import time

import pytest
from rich.console import Console

from jaxdpo.cli import console, progress
from jaxdpo.cli.command import run_command
from jaxdpo.cli.console import Reporter
from jaxdpo.cli.ending import command_line, ending
from jaxdpo.cli.progress import Counting

STAMPED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: `clock[0]` is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def log() -> Console:
    return Console(file=io.StringIO(), width=200, highlight=False)


def written(shown: Console) -> list[str]:
    return shown.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_log_gets_a_line_a_minute_with_the_time_left(clock):
    shown = log()
    with Counting(shown, "step", total=600) as counting:
        for step in range(1, 601):
            clock[0] += 0.5
            counting.reach(step, f"loss {step}")
    # 300 seconds: a line at 60, 120, 180, 240 and 300.
    lines = written(shown)
    assert [re.sub(STAMPED, "", line, count=1) for line in lines] == [
        f"step {step} of 600 ({step / 6:.0f}%)  loss {step}{left}"
        for step, left in (
            (120, "  about 4 min 00 s left"),
            (240, "  about 3 min 00 s left"),
            (360, "  about 2 min 00 s left"),
            (480, "  about 1 min 00 s left"),
            (600, ""),
        )
    ]
    assert all(re.match(STAMPED, line) for line in lines)


def test_the_time_left_does_not_count_what_was_done_before(clock):
    shown = log()
    with Counting(shown, "step", total=100, done=80) as counting:
        clock[0] += 60
        counting.reach(90, "")
    # Ten steps took a minute, so the last ten take another.
    assert written(shown)[0].endswith("step 90 of 100 (90%)  about 1 min 00 s left")


def test_what_is_done_at_once_says_nothing():
    shown = log()
    with Counting(shown, "answers", total=3) as counting:
        counting.advance(3)
    reporter = Reporter()
    reporter.console = shown
    with reporter.phase("loading"):
        pass
    assert written(shown) == [] and 0 <= reporter.phases["loading"] < 1


def test_a_phase_that_lasts_is_named_and_timed(monkeypatch):
    monkeypatch.setattr(console, "BAR_AFTER", 0.05)
    reporter = Reporter()
    reporter.console = log()
    for _ in range(2):
        with reporter.phase("compiling [the] step"):
            time.sleep(0.2)
    assert (
        written(reporter.console) == ["compiling [the] step …", "compiling [the] step, 0.2 s"] * 2
    )
    assert 0.4 <= reporter.phases["compiling [the] step"] < 2


def test_a_bar_comes_after_two_seconds_and_goes(monkeypatch):
    monkeypatch.setattr(progress, "BAR_AFTER", 0.05)
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Counting(screen, "[answers]", total=4) as counting:
        counting.advance(1)
        assert screen.file.getvalue() == ""  # type: ignore[attr-defined]
        time.sleep(0.6)
        counting.advance(1)
    assert "[answers]" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_text_of_models_is_no_command_of_the_terminal():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    reporter = Reporter()
    reporter.console = screen
    reporter.say("\x1b]0;owned\x07[bold red]x")
    assert screen.file.getvalue() == "\\x1b]0;owned\\x07[bold red]x\n"  # type: ignore[attr-defined]
    assert reporter.said == ["\x1b]0;owned\x07[bold red]x"]


def test_a_command_ends_with_its_time_and_the_next_one(monkeypatch, capsys):
    following = command_line("train", model="my models/sft", training__folder="runs/first")
    assert following == "jaxdpo train model='my models/sft' training.folder=runs/first"
    assert ending(252.0, following) == f"done in 4 min 12 s\nnext: {following}"
    assert ending(0.3, None) is None and ending(0.3, "x") == "next: x"
    monkeypatch.setattr("sys.argv", ["jaxdpo"])
    assert run_command(lambda arguments: following) == 0
    assert capsys.readouterr().out == f"next: {following}\n"

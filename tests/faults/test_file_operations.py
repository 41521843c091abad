"""A drawn sample of `python -m tests.faults`: faults at file operations, and flipped bits."""

import os
import subprocess
import sys

import pytest

from tests.faults.commands import PACKAGE
from tests.faults.file_faults import compiler

SEED = os.environ.get("JAXDPO_TEST_SEED", "0")
# More trials than the suite has time for, and of the commands that take longer:
# JAXDPO_TEST_FAULTS=200 python -m pytest tests/faults
TRIALS = int(os.environ.get("JAXDPO_TEST_FAULTS", "0"))
needs_compiler = pytest.mark.skipif(
    compiler() is None, reason="needs a C compiler (gcc) for the LD_PRELOAD library"
)


def faults(*words: str) -> str:
    """Runs the harness; returns the end of what it says."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults", *words, "--seed", SEED],
        cwd=PACKAGE.parent,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.splitlines()[-1]


@pytest.mark.skipif(
    compiler() is None, reason="needs a C compiler (gcc) for the LD_PRELOAD library"
)
def test_a_fault_at_any_file_operation_is_one_line_and_the_end_is_the_same():
    count = max(5, TRIALS // 10)
    said = faults("files", "--command", "collect", "convert", "--sample", str(count))
    assert ": 0 bad" in said


@pytest.mark.skipif(
    compiler() is None, reason="needs a C compiler (gcc) for the LD_PRELOAD library"
)
@pytest.mark.skipif(not TRIALS, reason="takes 8 s a trial: JAXDPO_TEST_FAULTS=100 runs so many")
@pytest.mark.parametrize("kind", ["files", "signals"])
def test_a_fault_or_a_signal_in_every_command(kind):
    assert ": 0 bad" in faults(kind, "--sample", str(TRIALS))


def test_no_flipped_bit_is_believed():
    said = faults("flips", "--sample", str(max(18, TRIALS)))
    assert said.endswith("flips: 0 bad")


@pytest.mark.skipif(not TRIALS, reason="takes 2 s a folder: JAXDPO_TEST_FAULTS=100 runs so many")
def test_changed_model_folders_are_refused_or_opened():
    assert faults("models", "--sample", str(TRIALS)).endswith("; 0 bad")

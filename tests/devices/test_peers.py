"""Processes of a run end together: real ones, on loopback, computing together until their fate."""

import json
import os
import re
import signal
import time

import pytest

from tests.devices import network
from tests.devices.processes import (
    Process,
    assert_no_stack,
    free_port,
    launched,
    processes,
    worker_command,
)

# Seconds within which all processes have to end, from the event on. The promise is 15, which
# tests/devices/fates.py measures; these run beside others that take up the processors.
LIMIT = 30
# Seconds of silence here, so that nobody waits for the usual ten.
QUICK = {"silence": 6}
# One of each kind is always tried; the others by JAXDPO_TEST_PROCESSES=all python -m pytest tests
another = pytest.mark.skipif(
    os.environ.get("JAXDPO_TEST_PROCESSES") != "all",
    reason="another of its kind is tried; set JAXDPO_TEST_PROCESSES=all",
)


def workers(folder, count, *, settings=None, **options):
    """Starts workers with these options; `settings` gives each its own."""
    return processes(
        folder,
        [
            worker_command(json.dumps(options | {"settings": settings[i] if settings else {}}))
            for i in range(count)
        ],
    )


def last_step(process):
    return int(process.output.rsplit("\nstep ", 1)[1].split()[0])


@pytest.mark.parametrize(
    ("number", "count", "target"),
    [
        (signal.SIGTERM, 3, 1),
        (signal.SIGINT, 2, 0),
        pytest.param(signal.SIGHUP, 2, 1, marks=another),
    ],
)
def test_signal_to_one_stops_all_after_the_same_step(tmp_path, number, count, target):
    with workers(tmp_path, count, phase="steps") as started:
        started[0].wait_for("step 5\n")
        start = time.monotonic()
        started[target].signal(number)
        # A second one, and another, ask for nothing more. (Two that are pending at once have no
        # order.)
        started[target].signal(number)
        time.sleep(0.2)
        started[0].signal(signal.SIGTERM if target == 0 else number)
        assert [each.status(LIMIT) for each in started] == [128 + number] * count
        assert time.monotonic() - start < LIMIT
        assert len({last_step(each) for each in started}) == 1
        for each in started:
            assert f"{number.name} to process" in each.output
            assert_no_stack(each)


def test_signal_while_no_python_code_runs(tmp_path):
    """Stands for a compile: nothing is unsaved, so nobody waits for a step."""
    with workers(tmp_path, 2, phase="compile") as started:
        for each in started:
            each.wait_for("joined")
        started[1].signal(signal.SIGTERM)
        assert [each.status(LIMIT) for each in started] == [143, 143]
        for each in started:
            assert "SIGTERM to process 1: nothing was unsaved; run it again" in each.output
            assert_no_stack(each)


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=another)])
def test_user_error_of_one_process(tmp_path, process):
    with workers(tmp_path, 2, phase="error", process=process) as started:
        assert [each.status(60) for each in started] == [2, 2]
        own, other = started[process], started[1 - process]
        assert "error: data.path missing.jsonl: no such file" in own.output
        assert f"error: process {process} (" in other.output
        assert "failed: data.path missing.jsonl: no such file. Process" in other.output
        assert "continues from the last whole checkpoint" in other.output
        for each in started:
            assert_no_stack(each)


def test_defect_in_one_process(tmp_path):
    with workers(tmp_path, 2, phase="crash", process=1) as started:
        assert [each.status(60) for each in started] == [1, 1]
        assert "Traceback" in started[1].output
        assert "failed: ZeroDivisionError: a defect. Process 0 ends" in started[0].output
        assert_no_stack(started[0])


@pytest.mark.parametrize(
    ("number", "count", "target", "said"),
    [
        (signal.SIGKILL, 3, 1, r"process 1 \(\S+\) has not been heard of for"),
        (signal.SIGKILL, 2, 0, r"process 0 at 127.0.0.1:\d+ is gone"),
        (signal.SIGSTOP, 2, 1, r"process 1 \(\S+\) has not been heard of for"),
        pytest.param(signal.SIGSTOP, 2, 0, r"process 0 has not answered for", marks=another),
    ],
)
def test_lost_process(tmp_path, number, count, target, said):
    with workers(tmp_path, count, phase="steps", limits=QUICK) as started:
        started[0].wait_for("step 3\n")
        started[target].signal(number, worker=True)
        start = time.monotonic()
        others = [each for i, each in enumerate(started) if i != target]
        assert [each.status(LIMIT) for each in others] == [75] * (count - 1)
        assert time.monotonic() - start < LIMIT
        for each in others:
            assert re.search(said, each.output), each.output
            assert "it continues from the last whole checkpoint" in each.output
            assert_no_stack(each)
        if number == signal.SIGKILL:
            assert started[target].status(LIMIT) == 137
            assert "was killed (SIGKILL)" in started[target].output


def test_processes_that_were_started_differently(tmp_path):
    settings = [{"loss.beta": "0.1", "seed": "0"}, {"loss.beta": "0.2", "seed": "0"}]
    with workers(tmp_path, 2, phase="steps", settings=settings) as started:
        assert [each.status(60) for each in started] == [2, 2]
        for each in started:
            assert "differs from process 0: loss.beta is 0.2 there and 0.1 here" in each.output
            assert "seed is" not in each.output
            assert_no_stack(each)


@another
def test_all_done(tmp_path):
    with workers(tmp_path, 2, phase="steps", steps=4) as started:
        assert [each.status(60) for each in started] == [0, 0]
        assert all(each.output.endswith("done\n") for each in started)


def test_program_that_trains_three_times(tmp_path):
    """It joins by itself and has no parent process; the third training is stopped."""
    with workers(tmp_path, 2, phase="program") as started:
        started[1].wait_for("trained\n(.*\n)*trained\n(.*\n)*step 3\n")
        started[1].signal(signal.SIGTERM)
        assert [each.status(LIMIT) for each in started] == [143, 143]
        assert len({last_step(each) for each in started}) == 1
        for each in started:
            assert "SIGTERM to process 1: saved after step" in each.output
            assert_no_stack(each)


def test_process_that_never_comes(tmp_path):
    command = worker_command(json.dumps({"phase": "steps", "limits": {"join": 3}}))
    with processes(tmp_path, [command], count=2) as started:
        assert started[0].status(LIMIT) == 2
        assert "did not all join within 3 s" in started[0].output
        assert_no_stack(started[0])


def test_cut_link(tmp_path):
    """Two hosts: a cut of some seconds heals, a longer one ends both sides, each by itself."""
    if (absent := network.missing()) is not None:
        pytest.skip(absent)
    with network.network() as hosts:
        port = free_port()
        command = worker_command(json.dumps({"phase": "steps", "limits": QUICK}))
        started = []
        for number in range(2):
            variables = launched(number, 2, port)
            variables["JAX_COORDINATOR_ADDRESS"] = f"{hosts.address}:{port}"
            words = [*hosts.prefix(number), *command]
            started.append(Process(words, variables, tmp_path / f"{number}.log"))
        try:
            started[0].wait_for("step 3\n")
            hosts.cut()
            time.sleep(2.5)
            hosts.mend()
            step = last_step(started[0])
            started[0].wait_for(f"step {step + 20}\n")
            hosts.cut()
            start = time.monotonic()
            assert [each.status(LIMIT) for each in started] == [75, 75]
            assert time.monotonic() - start < LIMIT
        finally:
            for each in started:
                each.end()
    assert re.search(r"process 1 \(\S+\) has not been heard of for", started[0].output)
    assert "process 0 has not answered for" in started[1].output
    for each in started:
        assert_no_stack(each)

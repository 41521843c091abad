"""Signals to a run of one process; those to one of several are in tests/devices/test_peers.py."""

import os
import signal
import threading

import pytest

from jaxdpo.training.signals import stop_on_signal


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_is_a_request(number, status):
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not (stop.after_step() or stop.cuts_short() or stop.after_last_step())
        os.kill(os.getpid(), number)
        # Another one changes nothing.
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.after_step() and stop.cuts_short() and stop.after_last_step()
        assert (stop.cause, stop.status) == (number.name, status)
    assert signal.getsignal(number) is before


def test_ctrl_c_is_a_request_and_the_second_interrupts_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.after_step() and stop.interrupts and stop.status == 130
        assert "Ctrl-C again stops at once" in capfd.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 0)
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_hangup_stays_ignored():
    """So does nohup start a program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.after_step()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_catch_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_on_signal() as stop:
            found.append(signal.getsignal(signal.SIGTERM))
            assert not stop.after_step()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]

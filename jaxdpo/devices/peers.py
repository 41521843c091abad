"""Word between the processes of a run: signs of life, failures, and requests to stop.

JAX leaves a process whose peer has died waiting in a collective until a timeout of minutes, and
then aborts it with a C++ stack. So two threads of each process keep in touch beside the
computation, over the key-value store of JAX's coordination service, which process 0 runs:

    beat/<i>           a number that process i raises twice a second
    told/stop/<i>      the signal that process i was sent
    told/at/<i>        how many common points process i has passed, or "free"
    told/verdict       where all stop, decided by process 0
    told/failed/<i>    the error that ended process i
    told/suspects/<i>  process i had an error that a lost peer may explain
    told/lost/<i>      for how many seconds process 0 has heard nothing of process i
    told/left/<i>      process i has nothing more to do

Only process 0 reads the signs of life, so the traffic grows with the number of processes and not
with its square. The others judge process 0 by whether its store answers at all.
"""

import json
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from jaxdpo.devices.distributed_config import DistributedConfig
from jaxdpo.devices.signals import CaughtSignals
from jaxdpo.devices.store import LAST_WORD, Store, patiently
from jaxdpo.devices.verdict import Verdict

# Exit status of a process that ends because another one was lost: EX_TEMPFAIL of sysexits.h, so
# that a job script can tell "run it again" from a mistake in the configuration (2).
LOST = 75
# Seconds between signs of life. A stop takes about three of them to be agreed on.
_BEAT = 0.5
# An error of a collective is blamed on a peer that was silent for this long: the peer's connection
# broke, so it need not be given the whole limit.
_SUSPECT = 3.0
_SHOW_CURSOR = b"\x1b[?25h\n"
_AGAIN = "the same command again on all of them: it continues from the last whole checkpoint"


class Peers:
    """The other processes of this run.

    Args:
      client: The client of JAX's coordination service.
      index: Number of this process.
      count: How many processes there are.
      config: Limits.
    """

    def __init__(self, client: Any, index: int, count: int, config: DistributedConfig):
        self._store, self._index, self._count, self._config = Store(client), index, count, config
        self._signals = CaughtSignals()
        self._changed = threading.Condition()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._told: dict[str, str] = {}
        self._published: set[str] = set()
        # What the main thread has passed, and what was decided about it.
        self._points, self._holds, self._barriers = 0, False, 0
        self._verdict: Verdict | None = None
        self._leaving = self._suspicious = False
        # When this process last had an answer, and process 0 a new sign of life of each other.
        self._answered = self._judged = time.monotonic()
        self._seen: dict[int, tuple[str, float]] = {}

    def start(self) -> None:
        """Starts to keep in touch, and catches signals if this is the main thread."""
        self._signals.catch()
        self._store.tell(f"host/{self._index}", socket.gethostname())
        for target in (self._keep_in_touch, self._listen):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def close(self) -> None:
        """Stops to keep in touch; the others no longer wait for signs of life."""
        self.depart()
        self._closed.set()
        self._wake.set()
        self._signals.release()

    # Called by the main thread.

    @property
    def verdict(self) -> Verdict | None:
        """The point at which all stop, once that is agreed."""
        return self._verdict

    def passes_point(self, unsaved: bool | None = None) -> bool:
        """Counts a point that every process passes in the same order; tells whether all stop here.

        A process that stopped by itself would leave the others in their next collective. So once
        any process was sent a signal, the counts stand still until process 0 has heard all of them,
        and all stop at the first point that none has passed yet. While nothing is unsaved, there is
        no need for that: then a stop ends the processes wherever they are.

        Args:
          unsaved: Whether leaving at once would lose work from here on; None: as before.
        """
        with self._changed:
            while self._stop_asked() and self._verdict is None:
                self._changed.wait(_BEAT)
            self._points += 1
            if unsaved is not None:
                self._holds = unsaved
            at = None if self._verdict is None else self._verdict.at
            return at is not None and self._points >= at

    def wait_for_all(self, name: str) -> None:
        """Waits until every process has come here; a process that is lost ends the wait.

        Args:
          name: What they have in common, for the store.
        """
        self._barriers += 1
        key = f"{name}/{self._barriers}/"
        self._store.tell(f"{key}{self._index}", "here")
        while len(self._store.read(key)) < self._count:
            time.sleep(_BEAT / 5)

    def find_difference(self, name: str, values: Mapping[str, str]) -> str | None:
        """Compares values with those of process 0; every process gets the same answer.

        Args:
          name: What is compared, for the store.
          values: Name ↦ value.

        Returns:
          What differs, by process and name; None if nothing does.
        """
        key = f"same/{name}/"
        if self._index == 0:
            self._store.tell(f"{key}first/0", json.dumps(values))
        while not (first := self._store.read(f"{key}first/")):
            time.sleep(_BEAT / 5)
        expected: dict[str, str] = json.loads(first["0"])
        differing = [
            f"{field} is {values.get(field)} there and {expected.get(field)} here"
            for field in sorted({*values, *expected})
            if values.get(field) != expected.get(field)
        ]
        self._store.tell(f"{key}of/{self._index}", "; ".join(differing))
        while len(found := self._store.read(f"{key}of/")) < self._count:
            time.sleep(_BEAT / 5)
        others = sorted((int(i), text) for i, text in found.items() if text)
        if not others:
            return None
        return "\n".join(f"{self.name(i)} differs from process 0: {text}" for i, text in others)

    def fails(self, text: str) -> bool:
        """Tells the others that this process ends by an error.

        Args:
          text: The error, in a line.

        Returns:
          False if they have ended it already, and said why.
        """
        with self._changed:
            if self._leaving:
                return False
            self._leaving = True
        # The link may be what failed: then the store does not answer, and they find out themselves.
        patiently(lambda: self._store.tell(f"told/failed/{self._index}", text))
        return True

    def depart(self) -> None:
        """Says that this process leaves; process 0 goes last, because the store goes with it."""
        patiently(self._depart)

    def explains(self) -> bool:
        """Waits whether a lost peer explains an error of this process, and then says so.

        A killed peer shows first as an error of a collective, and only then by its silence.
        """
        self._suspicious = True
        if self._index != 0:
            patiently(lambda: self._store.tell(f"told/suspects/{self._index}", "a peer"))
        with self._changed:
            self._changed.wait_for(lambda: self._leaving, _SUSPECT + 6 * _BEAT)
            return self._leaving

    def finish(self) -> None:
        """Waits until every process has done all that it had to do, and lets go of them."""
        self._store.tell(f"told/left/{self._index}", "done")
        with self._changed:
            self._changed.wait_for(lambda: len(self._named("left")) == self._count)
        self._closed.set()
        self._wake.set()
        self._signals.release()

    # The threads.

    def _keep_in_touch(self) -> None:
        beats = 0
        while not self._closed.is_set():
            beats += 1
            try:
                self._store.tell(f"beat/{self._index}", str(beats))
                if self._signals.first is not None:
                    self._publish("stop", str(self._signals.first))
                told = self._store.read("told/")
                if self._index == 0:
                    self._judge(told)
            except (RuntimeError, ValueError):
                # A store that cannot be reached shows as silence, below.
                self._wake.wait(_BEAT)
                continue
            self._answered = time.monotonic()
            self._act_on(told)
            self._wake.wait(_BEAT)
            self._wake.clear()

    def _listen(self) -> None:
        """Wakes at signals, and watches that the store answers: a cut link makes a call hang."""
        before = time.monotonic()
        while not self._closed.is_set():
            if select.select([self._signals.pipe], [], [], _BEAT)[0]:
                self._signals.drain()
                self._wake.set()
            now = time.monotonic()
            if now - before > 4 * _BEAT:
                # This process itself stood still, so the silence says nothing about the others.
                self._answered = now
            before = now
            silent = now - self._answered
            if self._index != 0 and silent > self._limit:
                self._leave(
                    f"process 0 has not answered for {silent:.0f} s: it was stopped, or its "
                    f"machine or the link to it is down. {self._ends()}",
                    LOST,
                    answers=False,
                )

    def _judge(self, told: Mapping[str, str]) -> None:
        """Decides, in process 0, which peers are lost and where all stop."""
        now, beats = time.monotonic(), self._store.read("beat/")
        self._suspicious |= any(key.startswith("suspects/") for key in told)
        # While this process stood still, nobody's silence was heard.
        stood_still = max(0.0, now - self._judged - 4 * _BEAT)
        self._judged = now
        for i in range(1, self._count):
            value, since = self._seen.get(i, ("", now))
            beat = beats.get(str(i), "")
            self._seen[i] = (beat, now) if beat != value else (value, since + stood_still)
            silent = now - self._seen[i][1]
            if silent > self._limit and f"left/{i}" not in told:
                self._publish(f"lost/{i}", f"{silent:.0f}", own=False)
        stops = {i: told[f"stop/{i}"] for i in range(self._count) if f"stop/{i}" in told}
        passed = [told[f"at/{i}"] for i in range(self._count) if f"at/{i}" in told]
        if stops and len(passed) == self._count and "verdict" not in told:
            source, signum = next(iter(stops.items()))
            # One that is free has nothing unsaved, and then the others are at most a step ahead of
            # it or behind it: they move in lockstep.
            at = None if "free" in passed else max(map(int, passed)) + 1
            self._publish("verdict", json.dumps([int(signum), source, at]), own=False)
            self._wake.set()

    def _act_on(self, told: dict[str, str]) -> None:
        with self._changed:
            self._told = told
            self._changed.notify_all()
            if self._leaving:
                return
            if self._stop_asked() and f"at/{self._index}" not in told:
                # The main thread waits at its next point from here on, so the count stands.
                self._publish("at", str(self._points) if self._holds else "free")
                self._wake.set()
            if "verdict" in told and self._verdict is None:
                self._verdict = Verdict(*json.loads(told["verdict"]))
                self._changed.notify_all()
        failed = self._named("failed")
        lost = self._named("lost")
        if failed:
            source, text = next(iter(sorted(failed.items())))
            status = 2 if text.startswith("error: ") else 1
            said = text.removeprefix("error: ").rstrip(".")
            self._leave(f"{self.name(source)} failed: {said}. {self._ends(fix=True)}", status)
        elif lost:
            source, seconds = next(iter(sorted(lost.items())))
            self._leave(
                f"{self.name(source)} has not been heard of for {seconds} s: it was killed (out of "
                "memory?) or stopped, or its machine or the link to it is down. "
                f"{self._ends()}",
                LOST,
            )
        elif self._verdict is not None and self._verdict.at is None:
            said = f"{self._verdict.cause()}: nothing was unsaved; run it again to continue"
            self._leave(said, 128 + self._verdict.signum, error=False)

    # What both use.

    def name(self, i: int) -> str:
        """Returns `process 1 (its host)`."""
        host = patiently(lambda: self._store.read("host/")).get(str(i))
        return f"process {i} ({host})" if host else f"process {i}"

    def here(self) -> int:
        """Counts the processes of this machine, this one included."""
        hosts = patiently(lambda: self._store.read("host/")).values()
        return max(1, list(hosts).count(socket.gethostname()))

    def _publish(self, key: str, value: str, own: bool = True) -> None:
        """Tells something once."""
        key = f"told/{key}/{self._index}" if own else f"told/{key}"
        if key not in self._published:
            self._store.tell(key, value)
            self._published.add(key)

    def _named(self, kind: str) -> dict[int, str]:
        return {
            int(key.removeprefix(f"{kind}/")): value
            for key, value in self._told.items()
            if key.startswith(f"{kind}/")
        }

    @property
    def _limit(self) -> float:
        silence = self._config.silence
        return min(silence, _SUSPECT) if self._suspicious else silence

    def _stop_asked(self) -> bool:
        return any(key.startswith("stop/") for key in self._told)

    def _ends(self, fix: bool = False) -> str:
        return (
            f"Process {self._index} ends with it. {'Fix that, and run' if fix else 'Run'} {_AGAIN}"
        )

    def _leave(self, text: str, status: int, error: bool = True, answers: bool = True) -> None:
        """Ends the process from a thread: its main thread may hang in a collective for ever.

        Args:
          text: Said at the end.
          status: Of the process.
          error: Whether it is an error.
          answers: Whether the store can still be told.
        """
        with self._changed:
            if self._leaving or self._closed.is_set():
                return
            self._leaving = True
            self._changed.notify_all()
        # Neither print nor sys.exit: the main thread may hold the locks of both.
        line = f"{'error: ' if error else ''}{text}\n".encode()
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)  # which the progress bar has hidden
        os.write(2 if error else 1, line)
        if answers:
            self.depart()
        os._exit(status)

    def _depart(self) -> None:
        self._store.tell(f"told/left/{self._index}", "left")
        if self._index != 0:
            return
        # The store goes with this process, and with it what the others are still to read.
        until = time.monotonic() + LAST_WORD
        while time.monotonic() < until:
            told = self._store.read("told/")
            here = [i for i in range(self._count) if f"lost/{i}" not in told]
            if all(f"left/{i}" in told for i in here):
                return
            time.sleep(_BEAT / 5)


_current: list[Peers] = []


def keep(peers: Peers | None) -> None:
    """Sets what `current` returns."""
    _current[:] = [] if peers is None else [peers]


def current() -> Peers | None:
    """Returns the peers of this process, or None in a run of one process."""
    return _current[-1] if _current else None


def processes_here() -> int:
    """Returns how many processes of the run share this machine."""
    joined = current()
    return 1 if joined is None else joined.here()

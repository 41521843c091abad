"""Keeps events in one SQLite file: append-only, each counted once, safe against a killed process.

The file is `feedback.sqlite3` in the studio's folder. Its write-ahead log lies beside it while a
server runs; copy the folder whole, or stop the server first.
"""

import contextlib
import json
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from jaxdpo.data.reading.jsonl import Record
from jaxdpo.errors import UserError

FILE = "feedback.sqlite3"
_MAGIC = b"SQLite format 3\0"
# Each brings a file one version further; `user_version` counts those that it has had.
_MIGRATIONS = (
    """
    CREATE TABLE events (
      number INTEGER PRIMARY KEY AUTOINCREMENT,
      id TEXT NOT NULL UNIQUE,
      conversation TEXT NOT NULL,
      body TEXT NOT NULL
    );
    CREATE INDEX events_of_conversation ON events (conversation, number);
    CREATE TRIGGER events_stay BEFORE UPDATE ON events
      BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    CREATE TRIGGER events_are_kept BEFORE DELETE ON events
      BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
    """,
    """
    CREATE TABLE assignments (
      given INTEGER PRIMARY KEY AUTOINCREMENT,
      task TEXT NOT NULL,
      annotator TEXT NOT NULL,
      until TEXT NOT NULL,
      UNIQUE (task, annotator)
    );
    """,
)

# A task is its holder's until a time: for ever once it is done, no longer once it was skipped.
_DONE = datetime.max.replace(tzinfo=UTC).isoformat()
_SKIPPED = datetime.min.replace(tzinfo=UTC).isoformat()
Progress = Literal["open", "done", "skipped"]


class IdTakenError(Exception):
    """An event has the id of another one, and says something else."""


def is_store(path: str) -> bool:
    """Tells whether a path is a studio's folder, or the SQLite file in it."""
    file = _file_of(path)
    try:
        with open(file, "rb") as stream:
            # By its content: a log may have any name, and a folder any database.
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def stored_events(path: str) -> Iterator[Record]:
    """Yields the events of a studio's folder, in the order in which they arrived.

    Raises:
      UserError: If the file cannot be read.
    """
    file = _file_of(path)
    try:
        # Read-only: to collect from a folder that is served changes nothing in it.
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            _check_version(database, file)
            for number, body in database.execute("SELECT number, body FROM events ORDER BY number"):
                yield Record(number, json.loads(body), body.encode())
    except sqlite3.Error as error:
        raise UserError(f"{file}: cannot be read as a studio's events: {error}") from error


def _file_of(path: str) -> Path:
    file = Path(path).expanduser().absolute()
    return file / FILE if file.is_dir() else file


def _check_version(database: sqlite3.Connection, file: Path) -> int:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        raise UserError(
            f"{file}: has version {version} of the events' tables, this jaxdpo knows "
            f"{len(_MIGRATIONS)}; use the jaxdpo that wrote it, or a newer one"
        )
    return version


class FeedbackStore:
    """The events of a studio's folder, for the one server that adds to them."""

    def __init__(self, folder: str | Path) -> None:
        """Opens the folder's file, and makes or migrates it if need be.

        Args:
          folder: The folder; made if it is not there.

        Raises:
          UserError: If it cannot be written, or the file is of a newer version.
        """
        self.folder = Path(folder).expanduser()
        file = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # `isolation_level=None`: transactions begin where the code says so, and nowhere else.
            # Requests come from several threads; the lock lets one at a time use the connection.
            self._database = sqlite3.connect(
                file, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._lock = threading.Lock()
            # With FULL, a commit returns when the log is on the disk: what the page is told is kept
            # survives the process, and the machine.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._migrate(file)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{file}: cannot be opened: {error}") from error

    def _migrate(self, file: Path) -> None:
        with self._transaction() as database:
            version = _check_version(database, file)
            for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
                # `executescript` would commit first; a trigger's body has semicolons of its own.
                for statement in _statements(script):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version={number}")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            # IMMEDIATE takes the lock for writing before anything is read, so what a transaction
            # reads cannot change until it writes.
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def append(self, events: Sequence[dict[str, Any]]) -> int:
        """Adds events, all or none, and gives each its time; those that are there count once.

        Args:
          events: Each with an `id` and a `conversation`.

        Returns:
          How many were new.

        Raises:
          IdTakenError: If an id is that of an event that says something else.
        """
        with self._transaction() as database:
            last = database.execute(
                "SELECT json_extract(body, '$.time') FROM events ORDER BY number DESC LIMIT 1"
            ).fetchone()
            now = _after(last[0] if last else None)
            # A microsecond apart, so that their order is told by their times alone.
            new = 0
            for event in events:
                known = database.execute(
                    "SELECT body FROM events WHERE id = ?", (event["id"],)
                ).fetchone()
                if known is None:
                    body = json.dumps({"time": now.isoformat(), **event}, ensure_ascii=False)
                    database.execute(
                        "INSERT INTO events (id, conversation, body) VALUES (?, ?, ?)",
                        (event["id"], event["conversation"], body),
                    )
                    new += 1
                    now += timedelta(microseconds=1)
                elif _said(json.loads(known[0])) != _said(json.loads(json.dumps(event))):
                    raise IdTakenError(event["id"])
            return new

    def events(self, conversation: str | None = None) -> list[dict[str, Any]]:
        """Returns the events of a conversation, or all, in order."""
        where, values = ("", ()) if conversation is None else (
            "WHERE conversation = ?", (conversation,)
        )  # fmt: skip
        with self._lock:
            rows = self._database.execute(
                f"SELECT body FROM events {where} ORDER BY number", values
            ).fetchall()
        return [json.loads(body) for (body,) in rows]

    def conversations(self, prefix: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the events of all conversations whose name begins so, by name."""
        with self._lock:
            rows = self._database.execute(
                "SELECT conversation, body FROM events WHERE conversation >= ? "
                "AND conversation < ? ORDER BY number",
                # Up to the last character there is: a range, which the index finds.
                (prefix, prefix + chr(sys.maxunicode)),
            ).fetchall()
        found: dict[str, list[dict[str, Any]]] = {}
        for conversation, body in rows:
            found.setdefault(conversation, []).append(json.loads(body))
        return found

    def assign(
        self, tasks: Sequence[str], annotator: str, overlap: int, hold: timedelta
    ) -> str | None:
        """Gives an annotator the first task that too few people have; None if there is none left.

        Args:
          tasks: All tasks, in order.
          annotator: Who asks.
          overlap: How many people are to judge each task.
          hold: How long a task is kept for someone who has not answered.
        """
        now = datetime.now(UTC)
        # Read and written under one lock: two who ask at once get different places.
        with self._transaction() as database:
            rows = database.execute("SELECT task, annotator, until FROM assignments").fetchall()
            holders: dict[str, set[str]] = {}
            for task, who, until in rows:
                # One that was kept too long is free for others, and still there for its holder.
                if datetime.fromisoformat(until) > now or who == annotator:
                    holders.setdefault(task, set()).add(who)
            for task in tasks:
                held = holders.get(task, set())
                if annotator not in held and len(held) < overlap:
                    database.execute(
                        "INSERT INTO assignments (task, annotator, until) VALUES (?, ?, ?)",
                        (task, annotator, (now + hold).isoformat()),
                    )
                    return task
        return None

    def annotators(self) -> list[str]:
        """Returns everybody who was given a task, in the order of their first one."""
        with self._lock:
            rows = self._database.execute(
                "SELECT annotator FROM assignments GROUP BY annotator ORDER BY MIN(given)"
            ).fetchall()
        return [name for (name,) in rows]

    def assigned(self, annotator: str) -> dict[str, Progress]:
        """Returns the tasks that an annotator was given, in that order, and how far each is."""
        with self._lock:
            rows = self._database.execute(
                "SELECT task, until FROM assignments WHERE annotator = ? ORDER BY given",
                (annotator,),
            ).fetchall()
        ends = {_DONE: "done", _SKIPPED: "skipped"}
        return {task: ends.get(until, "open") for task, until in rows}  # pyright: ignore[reportReturnType]

    def settle(self, task: str, annotator: str, progress: Progress) -> None:
        """Notes that an annotator is done with a task, skipped it, or has it open again.

        Args:
          task: The task.
          annotator: Who has it.
          progress: One that was skipped goes back to the others.
        """
        ends = {"done": _DONE, "skipped": _SKIPPED, "open": datetime.now(UTC).isoformat()}
        with self._transaction() as database:
            database.execute(
                "UPDATE assignments SET until = ? WHERE task = ? AND annotator = ?",
                (ends[progress], task, annotator),
            )


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _said(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "time"}


def _after(last: str | None) -> datetime:
    """Returns the time now, or just after the last event's where the clock was set back."""
    now = datetime.now(UTC)
    if last is None:
        return now
    return max(now, datetime.fromisoformat(last) + timedelta(microseconds=1))

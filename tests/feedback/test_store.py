"""The studio's store: whole or absent, once, in order, and read as a log is."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta

import pytest

from jaxdpo.errors import UserError
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.store import FILE, FeedbackStore, IdTakenError, is_store

ASKED = [{"role": "user", "content": "When?"}]


def turn(name="c"):
    events = [
        {"event": "prompt", "messages": ASKED},
        {"event": "generated", "output": "a", "content": "8"},
        {"event": "generated", "output": "b", "content": "9"},
        {"event": "selected", "output": "b"},
    ]
    return [
        {"id": f"{name}{i}", "conversation": name, **event}
        for i, event in enumerate(events, start=1)
    ]


def test_collect_reads_the_folder_as_it_reads_a_log(tmp_path):
    store = FeedbackStore(tmp_path / "feedback")
    assert store.append(turn()) == 4
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in store.events()))
    # While the server still has it open, and by the name of its file as well.
    for path in (tmp_path / "feedback", tmp_path / "feedback" / FILE):
        assert is_store(str(path))
        [pair] = collect("events", str(path)).pairs
        [same] = collect("events", str(log)).pairs
        assert (pair.prompt, pair.chosen, pair.rejected) == (
            same.prompt, same.chosen, same.rejected
        )  # fmt: skip
    assert pair.metadata["feedback"]["from"] == f"{tmp_path / 'feedback' / FILE}:1"
    store.close()
    assert not is_store(str(log)) and not is_store(str(tmp_path))


def test_an_act_that_is_sent_again_counts_once(tmp_path):
    store = FeedbackStore(tmp_path)
    assert [store.append(turn()), store.append(turn()), len(store.events())] == [4, 0, 4]
    changed = {**turn()[3], "output": "a"}
    with pytest.raises(IdTakenError):
        store.append([*turn("d"), changed])
    # All or none: the turn that came with the contradiction was not added either.
    assert len(store.events()) == 4
    times = [event["time"] for event in store.events()]
    assert times == sorted(times) and len(set(times)) == 4


def test_events_are_never_changed_or_deleted(tmp_path):
    FeedbackStore(tmp_path).append(turn())
    with sqlite3.connect(tmp_path / FILE) as database:
        for statement in ("DELETE FROM events", "UPDATE events SET body = '{}'"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                database.execute(statement)


def test_an_older_file_is_migrated_and_a_newer_one_refused(tmp_path):
    FeedbackStore(tmp_path).append(turn())
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DROP TABLE assignments")
        database.execute("PRAGMA user_version=1")
    store = FeedbackStore(tmp_path)
    assert store.assign(["t"], "ann", 1, timedelta(hours=1)) == "t" and len(store.events()) == 4
    store.close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match=r"version 99 .* knows 2"):
        FeedbackStore(tmp_path)
    with pytest.raises(UserError, match="version 99"):
        collect("events", str(tmp_path))


def test_tasks_are_shared_out_with_overlap(tmp_path):
    store = FeedbackStore(tmp_path)
    hour = timedelta(hours=1)

    def ask(who, hold=hour):
        return store.assign(["t1", "t2", "t3"], who, 2, hold)

    assert [ask("ann"), ask("bob"), ask("cat"), ask("ann")] == ["t1", "t1", "t2", "t2"]
    assert store.assigned("ann") == {"t1": "open", "t2": "open"}
    # Bob skips: another may take his place, and he does not get the task again.
    store.settle("t1", "bob", "skipped")
    assert [ask("cat"), ask("bob"), ask("ann"), ask("ann")] == ["t1", "t3", "t3", None]
    # One that is kept too long is free for others; what was answered never is.
    late = FeedbackStore(tmp_path / "late")
    assert late.assign(["t"], "ann", 1, timedelta(seconds=-1)) == "t"
    assert late.assign(["t"], "bob", 1, timedelta(seconds=-1)) == "t"
    late.settle("t", "bob", "done")
    assert late.assign(["t"], "cat", 1, hour) is None


WRITER = """
import sys
from jaxdpo.feedback.store import FeedbackStore
store = FeedbackStore(sys.argv[1])
for i in range(10**6):
    store.append([{"id": f"{sys.argv[2]}-{i}", "conversation": "c", "event": "abandoned"}])
    print(i, flush=True)
"""


def test_what_was_confirmed_survives_kill_9(tmp_path):
    confirmed = set()
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(attempt)],
            stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        )  # fmt: skip
        assert writer.stdout is not None
        for _ in range(20 + 7 * attempt):
            confirmed.add(f"{attempt}-{writer.stdout.readline().strip()}")
        writer.send_signal(signal.SIGKILL)
        # What it printed before it was killed was confirmed, too.
        confirmed |= {f"{attempt}-{line.strip()}" for line in writer.stdout if line.endswith("\n")}
        writer.wait()
    kept = [event["id"] for event in FeedbackStore(tmp_path).events()]
    assert len(confirmed) > 100 and confirmed <= set(kept) and len(kept) == len(set(kept))

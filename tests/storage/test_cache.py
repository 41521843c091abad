"""The cache: what is removed from it, and what never is."""

import os
import time
from pathlib import Path

import pytest

from jaxdpo.errors import UserError
from jaxdpo.storage.cache import (
    Limits,
    clear,
    limits_of_environment,
    list_entries,
    prune,
    tidy,
)

DAY = 24 * 3600.0


def write(path: Path, days: float, size: int = 4096) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    # A folder's own time would count as a use.
    os.utime(path.parent, (then, then))


@pytest.fixture
def cache(tmp_path):
    """Entries of several kinds and ages, and files that are nobody's to remove."""
    write(tmp_path / "pairs/old/TRAIN/pairs.arrow", 100)
    os.utime(tmp_path / "pairs/old", (1, 1))
    write(tmp_path / "pairs/new/TRAIN/pairs.arrow", 1, size=40960)
    then = time.time() - DAY
    os.utime(tmp_path / "pairs/new", (then, then))
    write(tmp_path / "reference/abc.npy", 50)
    write(tmp_path / "reference/abc.json", 20)
    write(tmp_path / "models/smollm2-1.2/config.json", 0)
    write(tmp_path / "judge_replies.jsonl", 500)
    write(tmp_path / "mine/thesis.txt", 500)
    return tmp_path


def found(cache: Path) -> list[tuple[str, str]]:
    return [(entry.kind, entry.name) for entry in list_entries(cache)]


def test_entries_are_listed_by_their_last_use(cache):
    assert found(cache) == [
        ("pairs", "old"),
        ("reference", "abc"),
        ("pairs", "new"),
        ("models", "smollm2-1.2"),
    ]
    # The log-probs and what says that they are whole are one entry.
    assert len(list_entries(cache)[1].paths) == 2


def test_old_entries_go_by_age_and_then_the_oldest_by_size(cache):
    assert [entry.name for entry in prune(cache, Limits(1e9, 90 * DAY))] == ["old"]
    # "new" takes up more than the limit by itself; what was used just now stays all the same.
    assert [entry.name for entry in prune(cache, Limits(30000, 90 * DAY))] == ["abc", "new"]
    assert found(cache) == [("models", "smollm2-1.2")]
    assert prune(cache, Limits(0, 0)) == []
    assert (cache / "judge_replies.jsonl").exists() and (cache / "mine/thesis.txt").exists()


def test_clear_removes_one_kind_or_all(cache):
    clear(cache, ["pairs"])
    assert [kind for kind, _ in found(cache)] == ["reference", "models"]
    clear(cache)
    assert found(cache) == []
    assert (cache / "judge_replies.jsonl").exists() and (cache / "mine/thesis.txt").exists()
    assert [path for path in cache.rglob("*.tmp")] == []


def test_it_is_tidied_once_a_day_by_the_limits_of_the_environment(cache, monkeypatch):
    monkeypatch.setenv("JAXDPO_CACHE_DAYS", "30")
    tidy(cache)
    assert ("pairs", "old") not in found(cache) and len(found(cache)) == 3
    monkeypatch.setenv("JAXDPO_CACHE_DAYS", "0")
    tidy(cache)
    assert len(found(cache)) == 3
    os.utime(cache / ".tidied", (1, 1))
    tidy(cache)
    assert found(cache) == [("models", "smollm2-1.2")]
    monkeypatch.setenv("JAXDPO_CACHE_GIB", "many")
    with pytest.raises(UserError, match="JAXDPO_CACHE_GIB: 'many' is no number"):
        limits_of_environment()


def test_leftovers_of_dead_processes_are_pruned(cache):
    write(cache / "pairs/.key.3fa94c0d11b2.tmp/pairs.arrow", 0)
    write(cache / "digests/.x.json.3fa94c0d11b2.tmp", 0)
    prune(cache, Limits(1e9, 1e9))
    assert [path for path in cache.rglob("*.tmp")] == []


def test_two_at_once_are_told_so(cache, monkeypatch):
    pid = os.fork()
    if pid == 0:
        import fcntl

        with open(cache / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (cache / "held").touch()
            time.sleep(60)
        os._exit(0)
    try:
        until = time.monotonic() + 30
        while not (cache / "held").exists() and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(UserError, match="another process is tidying it"):
            prune(cache, Limits(0, 0))
        os.environ.pop("JAXDPO_CACHE_DAYS", None)
        tidy(cache)
        assert ("pairs", "old") in found(cache)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)

"""Files that are tokenised by several processes give what one process gives."""

import contextlib
import json
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import find_weighted
from jaxdpo.data.reading.sources import Source, parts_of, read_source
from jaxdpo.data.tokenization import shares
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.data.tokenization.shares import find_shares, store_share
from jaxdpo.errors import UserError


@pytest.fixture
def chat(make_tokenizer):
    return Chat(make_tokenizer("bytes", "chatml"))


def line(file: int, number: int, **more) -> str:
    # Every seventh prompt stands in two files; every hundredth pair is too long.
    asked = f"Question {number % 7 if number % 7 == 0 else (file, number)}?"
    words = "long " * 90 if number % 100 == 3 else ""
    record = {
        "messages": [
            {"role": "user", "content": words + asked},
            {"role": "assistant", "content": f"Yes {number}, <|im_end|>"},
        ],
        "rejected_message": {"role": "assistant", "content": f"No {file}"},
        "metadata": {"number": number},
        **more,
    }
    return json.dumps(record) + "\n"


def write_files(folder: Path, counts=(700, 30, 900)) -> Path:
    """Files whose borders are not those of stored chunks, one with lines that are refused."""
    folder.mkdir()
    for file, count in enumerate(counts):
        split = {"split": "TEST"} if file == 1 else {}
        lines = [line(file, number, **split) for number in range(count)]
        if file == 2:
            lines[5:5] = ["{\n", "\n"]
        (folder / f"{file}.jsonl").write_text("".join(lines))
    rated = [
        {"prompt": "Which?", "completion": answer, "score": score}
        for answer, score in (("a", 1), ("b", 2), ("c", 4))
    ]
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    return folder


def config_of(folder: Path, cache: Path, processes: int, **more) -> DataConfig:
    return DataConfig(
        path=str(folder), cache_dir=str(cache), processes=processes, max_length=300, **more
    )


class Here:
    """Stands for a process that tokenises shares: this one."""

    def __init__(self, work):
        self.work, self.process = work, subprocess.Popen(["true"])

    def store(self, share):
        stored.append(share.weighted.source.name)
        store_share(self.work, share.weighted, share.folder, share.key)


stored: list[str] = []


@pytest.fixture
def here(monkeypatch):
    """Has shares tokenised without other processes, and lists the files that were."""
    stored.clear()
    monkeypatch.setattr(shares, "_worker", lambda work: contextlib.nullcontext(Here(work)))
    return stored


def assert_equal(one, other) -> None:
    assert one.report == other.report
    for split in ("TRAIN", "TEST"):
        a, b = one.splits[split], other.splits[split]
        assert a.fingerprint == b.fingerprint and a.report == b.report and len(a) == len(b)
        assert np.array_equal(a.lengths, b.lengths) and np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.scores, b.scores, equal_nan=True)
        for index in range(len(a)):
            assert all(map(np.array_equal, a[index], b[index]))
            assert a.source(index) == b.source(index) and a.prompt(index) == b.prompt(index)
            assert repr(a.metadata(index)) == repr(b.metadata(index))


def test_real_processes_store_what_one_does(chat, tmp_path):
    folder = write_files(tmp_path / "data")
    skip = {"on_error": "skip"}
    alone = load_pairs(config_of(folder, tmp_path / "a", 1, **skip), chat, tmp_path / "alone.jsonl")
    shared = load_pairs(
        config_of(folder, tmp_path / "b", 2, **skip), chat, tmp_path / "shared.jsonl"
    )
    assert_equal(alone, shared)
    # What was counted is no accident of an empty data set.
    assert alone.report.rejected and alone.report.blank == 1 and alone.report.leaked
    assert alone.report.formats == {"messages": 3, "rated": 1}
    assert alone.splits["TRAIN"].report.cut_by_token
    assert alone.splits["TRAIN"].report.spelled_control
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "shared.jsonl").read_bytes()
    assert list((tmp_path / "b" / "shares").iterdir()) == []


def test_bad_lines_of_all_files_stop_the_run(chat, tmp_path, here):
    folder = write_files(tmp_path / "data", (4, 4, 8))
    (folder / "0.jsonl").write_text("[1,\n" + (folder / "0.jsonl").read_text())
    messages = []
    for processes in (1, 3):
        with pytest.raises(UserError) as refused:
            load_pairs(config_of(folder, tmp_path / str(processes), processes), chat)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_what_is_done_is_not_done_again(chat, tmp_path, here):
    folder = write_files(tmp_path / "data", (4, 4, 4))
    whole = (folder / "1.jsonl").read_text()
    (folder / "1.jsonl").write_bytes(whole.encode("utf-16"))
    config = config_of(folder, tmp_path / "cache", 2, on_error="skip")
    with pytest.raises(UserError, match=r"1\.jsonl: is UTF-16 text"):
        load_pairs(config, chat)
    before = len(here)
    assert before >= 2
    (folder / "1.jsonl").write_text(whole)
    loaded = load_pairs(config, chat)
    assert sorted(set(here)) == sorted(str(path) for path in folder.iterdir())
    # The file that was refused is the only one that was begun twice.
    assert [name for name in set(here) if here.count(name) > 1] == [str(folder / "1.jsonl")]
    alone = load_pairs(config_of(folder, tmp_path / "alone", 1, on_error="skip"), chat)
    assert_equal(alone, loaded)


def test_machines_that_share_a_cache_share_the_work(chat, tmp_path, here):
    folder = write_files(tmp_path / "data", (60, 60, 60))
    config = config_of(folder, tmp_path / "cache", 2, on_error="skip")
    loaded = []
    machines = [
        threading.Thread(target=lambda: loaded.append(load_pairs(config, chat))) for _ in range(3)
    ]
    for each in machines:
        each.start()
    for each in machines:
        each.join()
    assert sorted(here) == sorted(str(path) for path in folder.iterdir())
    assert len(loaded) == 3
    for each in loaded[1:]:
        assert_equal(loaded[0], each)


def test_process_that_dies_is_named(chat, tmp_path):
    died = subprocess.Popen(
        ["sh", "-c", "kill -9 $$"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    died.wait()
    config = config_of(write_files(tmp_path / "data", (2, 2, 2)), tmp_path / "cache", 2)
    found = find_weighted(config.weights())
    share = shares.make_shares(config, chat, False, found)[0]
    with pytest.raises(UserError, match=r"0\.jsonl: the process that tokenised it ended with"):
        shares._Worker(died).store(share)


def test_small_data_needs_no_processes(tmp_path):
    folder = write_files(tmp_path / "data", (2, 2, 2))
    found = find_weighted({str(folder): 1.0})
    alone = DataConfig(path=str(folder))
    assert find_shares(alone, False, found)[0] == 1
    assert find_shares(alone.model_copy(update={"processes": 9}), False, found)[0] == 4


def test_processes_of_one_machine_share_its_cores(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "data", (2, 2, 2))
    found = find_weighted({str(folder): 1.0})
    monkeypatch.setattr(shares, "_LARGE", 1)
    monkeypatch.setattr(shares, "_cores", lambda: 6)
    for others, expected in ((1, 4), (2, 3), (4, 1), (8, 1)):
        monkeypatch.setattr(shares, "processes_here", lambda others=others: others)
        assert find_shares(DataConfig(path=str(folder)), False, found)[0] == expected


@pytest.mark.parametrize("part", [200, 5000, 10**6])
def test_parts_of_a_file_are_its_lines(tmp_path, part):
    """However a file is parted, the parts are its lines, with their numbers."""
    path = write_files(tmp_path / "data") / "2.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b'{"no": "end"}')
    whole = Source(str(path))
    parts = parts_of(whole, part)
    assert len(parts) > 1 or part == 10**6
    read = [record for each in parts for record in read_source(each)]
    assert read == list(read_source(whole))


def test_one_large_file_is_tokenised_in_parts(chat, tmp_path, here, monkeypatch):
    monkeypatch.setattr(shares, "_PART", 20_000)
    path = write_files(tmp_path / "data") / "2.jsonl"
    found = []
    for processes in (1, 3):
        config = config_of(path, tmp_path / str(processes), processes, on_error="skip")
        found.append(load_pairs(config, chat))
    assert len(here) > 5 and set(here) == {str(path)}
    assert_equal(*found)


@pytest.mark.parametrize(
    ("columns", "odd"),
    [
        # Wrong in one part, and right in all others.
        ({}, {"prompt": "Which?", "chosen": "a", "rejected": "b"}),
        ({"metadata": "number", "system": "persona"}, None),
    ],
)
def test_what_only_the_whole_file_tells(chat, tmp_path, here, monkeypatch, columns, odd):
    monkeypatch.setattr(shares, "_PART", 2_000)
    path = write_files(tmp_path / "data", (60, 1, 1)) / "0.jsonl"
    if odd is not None:
        with open(path, "a") as file:
            file.write(json.dumps(odd) + "\n")
    messages = []
    for processes in (1, 3):
        config = config_of(path, tmp_path / str(processes), processes, columns=columns)
        with pytest.raises(UserError) as refused:
            load_pairs(config, chat)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
    assert ("several forms" if odd else "no record of") in messages[0]

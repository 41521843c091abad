"""The command as a process: it says where it listens, drains at a signal, and leaves in order."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import Any

import pytest

from jaxdpo.data.generations import read_generations
from tests.serving.running import MODEL, QUESTION, client


def start(*words, **environment):
    """Starts `jaxdpo serve` and waits for its address; returns the process and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdpo", "serve", MODEL, "port=0", "batch_size=4", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        found = re.search(r"serving at (http://\S+)/v1", line)
        if found:
            return process, found[1]
    raise AssertionError(process.stderr.read())


def leave(process, number, twice=False):
    process.send_signal(number)
    if twice:
        time.sleep(0.3)
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


class TestOneProcess:
    """One start, since loading and compiling take the time; it is ended in the last test."""

    @pytest.fixture(scope="class")
    def served(self):
        process, url = start()
        yield process, url
        process.kill()
        process.wait()

    def test_evaluate_asks_it(self, served, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        data = ["data=@quickstart/pairs.jsonl", "data.split=TEST", "data.limit=3"]
        short = ["sampling.max_new_tokens=12", "sampling.batch_size=2"]
        criteria = "criteria={name: word_limit, limit: 8}"
        import_module("jaxdpo.evaluate").main(
            [f"remote={served[1]}/v1#{MODEL}", f"local={MODEL}", *data, *short, criteria, "out=e"]
        )
        answers = [
            [each.completion for each in read_generations(f"e/generations/{name}.jsonl")]
            for name in ("remote", "local")
        ]
        # At temperature 0 the server answers as the model does where it lies.
        assert answers[0] == answers[1] and len(answers[0]) == 3

    def test_prefer_asks_it(self, served, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        import_module("jaxdpo.prefer").main(
            [f"model={served[1]}/v1#{MODEL}", "data=@quickstart/pairs.jsonl", "data.limit=4",
             "samples=4", "sampling.temperature=1.3", "sampling.max_new_tokens=16",
             "criteria={name: word_limit, limit: 6}", "folder=pairs"]
        )  # fmt: skip
        drawn = read_generations("pairs/generations.jsonl")
        assert len(drawn) == 16 and len({each.completion for each in drawn}) > 8

    def test_sigterm_lets_answers_finish(self, served):
        process, url = served
        pieces, body = [], {"model": MODEL, "messages": QUESTION, "max_tokens": 400}
        stream = client(url).chat.completions.create(
            **body, temperature=5.0, seed=3, stream=True, stream_options={"include_usage": True}
        )
        pieces.append(next(iter(stream)))
        reader = threading.Thread(target=lambda: pieces.extend(stream))
        reader.start()
        status, out, err = leave(process, signal.SIGTERM)
        reader.join()
        assert (status, err.count("Traceback")) == (143, 0)
        assert "SIGTERM: the server has ended" in out
        assert pieces[-1].usage is not None and pieces[-2].choices[0].finish_reason
        with pytest.raises(OSError):
            address = url.removeprefix("http://").split(":")
            socket.create_connection((address[0], int(address[1])), timeout=1)


@pytest.mark.skipif(
    not os.environ.get("JAXDPO_SERVING"), reason="a start of its own; set JAXDPO_SERVING=1 to run"
)
def test_ctrl_c_twice_does_not_wait():
    process, url = start("limits.drain=60")
    create: Any = client(url).chat.completions.create
    stream = create(
        model=MODEL, messages=QUESTION, max_tokens=490, temperature=5.0, stream=True, n=40
    )
    next(iter(stream))
    status, _, err = leave(process, signal.SIGINT, twice=True)
    assert status == 130 and "Traceback" not in err


def test_an_address_that_is_taken(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "jaxdpo.serve", MODEL, f"port={port}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert f"port={port}: cannot be listened at: Address already in use" in done.stderr

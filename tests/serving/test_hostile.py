"""Requests that mean no good, and a server that is well afterwards.

A sample runs by default; `JAXDPO_HOSTILE=1000` says how many to send.
"""

import json
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.serving.running import MODEL, QUESTION, client, post, running, wait_for

COUNT = int(os.environ.get("JAXDPO_HOSTILE", "60"))
HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GOOD = {"model": MODEL, "messages": QUESTION, "max_tokens": 40, "temperature": 2.0}


def body_of(rng: random.Random) -> bytes:
    """A body that is wrong in one of many ways, or right and large."""
    broken = [
        lambda: json.dumps(GOOD)[: rng.randrange(80)].encode(),
        lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(500))),
        lambda: ("[" * rng.randrange(1, 50_000)).encode(),
        lambda: ('{"a":' * rng.randrange(1, 20_000)).encode(),
        lambda: b"x" * rng.randrange(100_000, 300_000),
        lambda: json.dumps(
            {**GOOD, "messages": [{"role": "user", "content": "a " * 40_000}]}
        ).encode(),
        lambda: json.dumps({**GOOD, rng.choice(list(GOOD)): rng.choice(VALUES)}).encode(),
        lambda: json.dumps({**GOOD, rng.choice(FIELDS): rng.choice(VALUES)}).encode(),
        lambda: json.dumps(GOOD).encode(),
        lambda: json.dumps({**GOOD, "stream": True, "n": rng.randrange(1, 9)}).encode(),
    ]
    return rng.choice(broken)()


FIELDS = ["n", "stop", "seed", "top_p", "top_k", "tools", "stream", "logprobs", "top_logprobs",
          "chat_template_kwargs", "criteria", "best_of", "echo", "x" * 1000]  # fmt: skip
LONG = [{"role": "user", "content": "a " * 40_000}]
VALUES = [None, -1, 0, 1e308, 2**70, "", "\x00", "a" * 5000, [], [[]] * 50, {}, {"a": {"b": []}},
          True, [{"role": "user", "content": None}], [{"role": "user", "content": "\x00"}],
          [{"type": "function", "function": {"name": "f"}}]]  # fmt: skip


def attack(address: tuple[str, int], number: int) -> None:
    """One connection: whole, cut off, too slow, with a wrong length, or not HTTP at all."""
    rng = random.Random(number)
    path = rng.choice(["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/"])
    body = body_of(rng)
    length = len(body) + rng.choice([0, 0, 0, 0, 10, -min(5, len(body))])
    request = (HEAD.format(path=path) + f"Content-Length: {length}\r\n\r\n").encode() + body
    way = rng.randrange(8)
    with socket.create_connection(address, timeout=20) as connection:
        try:
            if way == 0:  # cut off
                connection.sendall(request[: rng.randrange(len(request))])
            elif way == 1:  # never HTTP
                connection.sendall(body)
            elif way == 2:  # slow, a byte at a time
                for byte in request[:20]:
                    connection.sendall(bytes([byte]))
                    time.sleep(rng.random() / 50)
            elif way == 3:  # heads without end
                connection.sendall(HEAD.format(path=path).encode())
                connection.sendall(b"X: " + b"a" * 100_000)
            else:
                connection.sendall(request)
                if rng.random() < 0.6:
                    connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass  # refused while it was being sent


def test_the_server_is_well_afterwards():
    limits = {"receive_timeout": 2.0, "body_bytes": 200_000, "waiting": 64}
    with running(batch_size=4, limits=limits) as (root, server):
        host, port = root.removeprefix("http://").split(":")
        expected = ask(root)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: attack((host, int(port)), n), range(COUNT)))
        app: Any = server.config.app
        scheduler = app.state.models[MODEL].scheduler
        wait_for(lambda: scheduler.counts == (0, 0))
        wait_for(lambda: not server.server_state.connections, 30)
        assert ask(root) == expected
        assert client(root).models.list().data[0].id == MODEL


def ask(root):
    reply = client(root).chat.completions.create(**{**GOOD, "temperature": 0})
    return reply.choices[0].message.content


def test_no_request_is_answered_as_a_defect(caplog):
    """None of the bodies may find a way to an exception that nobody thought of."""
    rng = random.Random(7)
    with running(batch_size=4, limits={"body_bytes": 200_000}) as (root, _):
        statuses = []
        for _ in range(COUNT):
            path = rng.choice(["/v1/chat/completions"] * 2 + ["/v1/completions", "/tokenize"])
            status, reply = post(root, path, body_of(rng))
            statuses.append(status)
            if status != 200:
                assert set(json.loads(reply)["error"]) == {"message", "type", "param", "code"}
    assert not [status for status in statuses if status >= 500]
    assert {200, 400} < set(statuses)
    assert not [record for record in caplog.records if record.exc_info]

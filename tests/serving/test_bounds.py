"""Keys, queues, time-outs, sizes: what a server refuses, and that it is well afterwards."""

import contextlib
import http.client
import json
import logging
import socket
import threading
import time

import openai
import pytest

from jaxdpo.cli.settings import checked
from jaxdpo.errors import UserError
from jaxdpo.serving import ServeConfig
from jaxdpo.serving.requests import key_check
from tests.serving.running import MODEL, QUESTION, client, post, running, wait_for

KEY = "correct-horse-battery"


def test_a_key_is_asked_for(monkeypatch, caplog):
    monkeypatch.setenv("JAXDPO_TEST_KEY", KEY)
    caplog.set_level(logging.INFO, logger="jaxdpo.serving")
    with running(api_key_env="JAXDPO_TEST_KEY", batch_size=4) as (root, _):
        asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 2}
        assert client(root, api_key=KEY).chat.completions.create(**asked).choices
        for wrong in ("none", KEY[:-1], KEY + "x", "ü"):
            body = json.dumps(asked)
            authorization = f"Bearer {wrong}".encode()
            status, said = post(
                root, "/v1/chat/completions", body, {"Authorization": authorization}
            )
            assert status == 401 and b"the key is missing or wrong" in said
        for path in ("/v1/completions", "/tokenize", "/detokenize"):
            assert post(root, path, "{}")[0] == 401
        for path, status in (("/v1/models", 401), ("/metrics", 401), ("/tokenizer_info", 401)):
            assert get(root, path)[0] == status
        assert get(root, "/health") == (200, b'{"status":"ok"}')
    # A line for every request, and nothing in them that should not be there.
    lines = [record.getMessage() for record in caplog.records]
    assert sum("POST /v1/chat/completions 200" in line for line in lines) == 1
    assert sum(" 401 " in line for line in lines) == 10
    assert not any(KEY in line or "museum" in line for line in lines)


def get(root, path, **headers):
    connection = http.client.HTTPConnection(root.removeprefix("http://"), timeout=30)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_prompts_and_answers_are_logged_where_asked_for(caplog):
    caplog.set_level(logging.INFO, logger="jaxdpo.serving")
    with running(log="texts", batch_size=4) as (root, _):
        asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 4}
        reply = client(root).chat.completions.create(**asked)
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage()[0] == "{"]
    answers = [reply.choices[0].message.content]
    assert lines == [{"model": MODEL, "asked": QUESTION, "answers": answers}]


@pytest.fixture(scope="module")
def bounded():
    """A server with room for little."""
    limits = {"waiting": 6, "timeout": 3.0, "body_bytes": 20_000, "receive_timeout": 1.0}
    with running(batch_size=4, limits=limits) as (root, server):
        yield root, server


def asks(root, **fields):
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 8} | fields
    return client(root).chat.completions.create(**body)


def test_a_full_queue_is_said(bounded):
    root, _ = bounded
    with pytest.raises(openai.RateLimitError, match="too many requests wait already"):
        asks(root, n=7)
    assert len(asks(root, n=6).choices) == 6


def test_an_answer_that_takes_too_long_is_given_up(bounded):
    root, server = bounded
    scheduler = server.config.app.state.models[MODEL].scheduler
    scheduler_step = scheduler._look

    def slow(pool):
        threading.Event().wait(0.5)
        scheduler_step(pool)

    scheduler._look = slow
    try:
        with pytest.raises(openai.APIStatusError, match="no whole answer within 3 s") as late:
            asks(root, max_tokens=490, temperature=5.0, seed=1)
        assert late.value.status_code == 504
        wait_for(lambda: scheduler.counts == (0, 0), 10)
    finally:
        del scheduler._look
    assert asks(root).choices


def test_an_engine_that_fails_is_made_again(bounded):
    root, server = bounded
    scheduler = server.config.app.state.models[MODEL].scheduler
    expected = asks(root, temperature=0).choices[0].message.content

    def failing(pool):
        if scheduler.counts != (0, 0):
            del scheduler._look
            raise RuntimeError("RESOURCE_EXHAUSTED: /home/someone is secret")

    scheduler._look = failing
    with pytest.raises(openai.InternalServerError, match="the engine failed") as failed:
        asks(root)
    assert "secret" not in str(failed.value)
    assert asks(root, temperature=0).choices[0].message.content == expected


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        ("x" * 20_001, {}, 413, "larger than 20000 bytes"),
        ("{", {}, 400, "the body is not JSON"),
        ("[" * 15_000, {}, 400, "the body is not JSON"),
        ('{"model": "\\ud800"}', {}, 400, "the body is not JSON"),
        (b"\xff\xfe", {}, 400, "the body is not JSON"),
        ('"a"', {}, 400, "object"),
        ("{}", {"Content-Type": "text/plain"}, 415, "send application/json"),
        ("{}", {"Host": "evil.example"}, 421, "names another server"),
        (json.dumps({"model": MODEL, "messages": QUESTION, "temperature": float("nan")}), {}, 400,
         "temperature"),
    ],
)  # fmt: skip
def test_what_no_client_sends(bounded, body, headers, status, said):
    got, reply = post(bounded[0], "/v1/chat/completions", body, headers)
    assert (got, said in json.loads(reply)["error"]["message"]) == (status, True)


# 160,000 bytes are read and thrown away; of 16 times the limit and more, the rest is not.
@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/v1/chat/completions", "localhost", 413), ("/v1/chat/completions", "evil.example", 421),
     ("/v2/x", "localhost", 404)],
)  # fmt: skip
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_still_sends_is_told_why_it_is_refused(bounded, path, host, status, chunked):
    part, parts = b"x" * 20_000, 8
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {parts * len(part)}"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\n{length}\r\n\r\n"
    )
    address = bounded[0].removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
        connection.sendall(head.encode())
        for _ in range(parts):
            # With pauses: a connection that was closed would be reset in one of them.
            time.sleep(0.02)
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize("header", ["", "Expect: 100-continue\r\n"])
def test_a_body_without_end_is_not_read_for_ever(bounded, header):
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: evil.example\r\n{header}"
        "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
    )
    address = bounded[0].removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
        connection.sendall(head.encode() + (b"" if header else b"x" * 400_000))
        # The refusal, without a single "go on" before it.
        assert connection.recv(1000).startswith(b"HTTP/1.1 421 ")


def test_other_paths(bounded):
    status, reply = get(bounded[0], "/v2/x")
    assert status == 404 and json.loads(reply)["error"]["type"] == "not_found_error"
    assert get(bounded[0], "/v1/chat/completions")[0] == 405


def test_requests_that_do_not_come_whole_are_closed(bounded):
    begun = [
        b"",
        b"POST /v1/chat/completions HT",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ]
    host, port = bounded[0].removeprefix("http://").split(":")
    # All at once: each waits for the same second.
    with contextlib.ExitStack() as open_ones:
        connections = [
            open_ones.enter_context(socket.create_connection((host, int(port)), timeout=10))
            for _ in begun
        ]
        for connection, sent in zip(connections, begun, strict=True):
            connection.sendall(sent)
        for connection in connections:
            # The end of the connection, or its reset; a time-out fails the test.
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""


def test_numbers(bounded):
    asks(bounded[0])
    status, text = get(bounded[0], "/metrics")
    numbers = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#")
    ok = 'jaxdpo_requests_total{path="/v1/chat/completions",status="200"}'
    assert status == 200 and float(numbers[ok]) >= 1
    assert float(numbers[f'jaxdpo_completion_tokens_total{{model="{MODEL}"}}']) >= 8
    assert numbers[f'jaxdpo_rows_running{{model="{MODEL}"}}'] == "0"
    counted = f'jaxdpo_first_token_seconds_count{{model="{MODEL}"}}'
    assert float(numbers[counted]) >= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set model to one model, or models to several"),
        ({"model": "a", "models": {"b": "c"}}, "set model to one model"),
        ({"models": ["a", "a"]}, "a stands twice"),
        ({"model": "a", "host": "0.0.0.0"}, "open to other machines, so clients need a key"),
        ({"model": "a", "api_key_env": "A", "api_key_file": "b"}, "both name a key"),
        ({"model": "a", "port": 65536}, "port"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        checked(ServeConfig, settings)


def test_keys_are_read(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXDPO_NO_KEY", raising=False)
    with pytest.raises(UserError, match=r"\$JAXDPO_NO_KEY: holds a key of 0 characters"):
        key_check(ServeConfig(model="a", api_key_env="JAXDPO_NO_KEY"))
    file = tmp_path / "key"
    with pytest.raises(UserError, match=r"api_key_file .*: cannot be read"):
        ServeConfig(model="a", api_key_file=str(file)).key()
    file.write_text(KEY + "\n")
    assert ServeConfig(model="a", host="0.0.0.0", api_key_file=str(file)).key() == KEY

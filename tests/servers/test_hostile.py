"""Servers that drip, flood, pack, redirect, or are not those that a key is meant for."""

import contextlib
import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jaxdpo.errors import UserError
from jaxdpo.servers.bounded import MOST_BYTES
from jaxdpo.servers.chat_client import ChatClient

REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "PASS"}, "finish_reason": "stop"}
    ],
}
BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


class Hostile(ThreadingHTTPServer):
    """A server whose reply is chosen by the first part of the path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.authorizations = []
        self.sent = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, kind):
        return f"http://127.0.0.1:{self.server_port}/{kind}"


class Handler(BaseHTTPRequestHandler):
    server: Hostile

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorizations.append(self.headers["Authorization"])
        # The client may have had enough.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, self.path.split("/")[1])()

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def fine(self):
        self.head()
        self.wfile.write(json.dumps(REPLY).encode())

    def drip(self):
        self.head()
        for _ in range(200):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def flood(self):
        self.head()
        while self.server.sent < 20 * MOST_BYTES:
            self.server.sent += self.wfile.write(b"a" * 2**20)

    def packed(self):
        self.head(content_encoding="gzip")
        self.wfile.write(gzip.compress(b" " * 2**27))

    def elsewhere(self):
        self.head(307, location=self.server.url("fine"), content_length="0")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Hostile()
    yield server
    server.shutdown()
    server.server_close()


def ask(url, **settings):
    with ChatClient("judge m", url, timeout=1.0, retries=0, **settings) as client:
        return client.complete(BODY).choices[0].message.content


def test_a_reply_that_drips_ends_with_the_time(server):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"judge m at .* did not answer.*timed out"):
        ask(server.url("drip"))
    # It would have taken twenty seconds; its silences are a tenth of a second each.
    assert time.monotonic() - start < 10


def test_a_reply_without_end_is_given_up(server):
    with pytest.raises(UserError, match="the reply has more than 32 MiB"):
        ask(server.url("flood"))
    # What the client had not read lay in the sockets' buffers alone.
    assert server.sent < 2 * MOST_BYTES


def test_a_packed_reply_is_not_unpacked(server):
    with pytest.raises(UserError, match="the reply is compressed"):
        ask(server.url("packed"))


def test_a_redirect_is_named_and_not_followed(server):
    with pytest.raises(UserError, match=f"redirects to {server.url('fine')}, which is not"):
        ask(server.url("elsewhere"))
    assert len(server.authorizations) == 1


def test_the_default_key_goes_only_where_it_was_meant_for(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-default")
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    url = server.url("fine")
    ask(url)
    ask(url, key_env="OTHER_KEY")
    ask(url, trusted=True)
    monkeypatch.setenv("OPENAI_BASE_URL", url + "/")
    ask(url)
    sent = [each.removeprefix("Bearer ") for each in server.authorizations]
    assert sent == ["none", "sk-other", "sk-default", "sk-default"]


@pytest.mark.parametrize("url", ["http://example.com/v1", "http://10.0.0.1/v1", "http://[::2]/v1"])
def test_no_key_leaves_the_machine_unencrypted(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-default")
    with pytest.raises(UserError, match="which is not encrypted; use https"):
        ChatClient("judge m", url, key_env="OPENAI_API_KEY")
    client = ChatClient("m", url, trusted=True)
    assert client._client.api_key == "none"


@pytest.mark.parametrize(
    "url", ["https://example.com/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"]
)
def test_a_key_that_is_named_goes_to_safe_addresses(url, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    assert ChatClient("judge m", url, key_env="MY_KEY")._client.api_key == "sk-mine"

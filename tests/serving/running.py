"""Servers of the quickstart model in threads of this process, at free ports of loopback."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai

from jaxdpo.cli.console import Reporter
from jaxdpo.serving import ServeConfig, load_models
from jaxdpo.serving.app import make_app
from jaxdpo.serving.server import Server, listen

MODEL = "@quickstart/model"
QUESTION = [{"role": "user", "content": "When does the museum open?"}]


@contextmanager
def running(**settings: Any) -> Iterator[tuple[str, Server]]:
    """Serves until the block ends; yields the server's root URL and the server."""
    config = ServeConfig(**{"model": MODEL, "port": 0} | settings)
    listener = listen(config)
    server = Server(make_app(load_models(config), config), config, Reporter(quiet=True))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def client(root: str, **settings: Any) -> openai.OpenAI:
    """An OpenAI client of the server that does not ask twice."""
    return openai.OpenAI(
        **{"base_url": f"{root}/v1", "api_key": "none", "max_retries": 0, "timeout": 60} | settings
    )


def post(root, path, body, headers=None):
    """A request that no client would send; returns status and body."""
    connection = http.client.HTTPConnection(root.removeprefix("http://"), timeout=30)
    connection.request("POST", path, body, {"Content-Type": "application/json"} | (headers or {}))
    reply = connection.getresponse()
    return reply.status, reply.read()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits until a condition holds, and fails if it does not come to."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)

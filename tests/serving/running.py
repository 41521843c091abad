"""Servers of the quickstart model in threads of this process, at free ports of loopback."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import openai

from jaxdpo.cli.console import Reporter
from jaxdpo.serving import AnsweringModel, ServeConfig, load_models
from jaxdpo.serving.app import make_app
from jaxdpo.serving.server import Server, listen

MODEL = "@quickstart/model"
QUESTION = [{"role": "user", "content": "When does the museum open?"}]
# Loading and compiling are most of a test's time, so servers with the same rows share a model.
_loaded: dict[int, AnsweringModel] = {}


def answering(batch_size: int) -> AnsweringModel:
    """The quickstart model with so many rows; its thread is started by the first server."""
    if batch_size not in _loaded:
        config = ServeConfig(model=MODEL, batch_size=batch_size)
        _loaded[batch_size] = load_models(config)[MODEL]
    return _loaded[batch_size]


@contextmanager
def running(
    models: Mapping[str, AnsweringModel] | None = None, **settings: Any
) -> Iterator[tuple[str, Server]]:
    """Serves until the block ends; yields the server's root URL and the server."""
    config = ServeConfig(**{"model": MODEL, "port": 0} | settings)
    listener = listen(config)
    server = Server(make_app(models or load_models(config), config), config, Reporter(quiet=True))
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


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits until a condition holds, and fails if it does not come to."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)

"""A server of the quickstart model in a thread of this process, at a free port of loopback."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import openai

from jaxdpo.cli.console import Reporter
from jaxdpo.serving import AnsweringModel, ServeConfig, load_models
from jaxdpo.serving.app import make_app
from jaxdpo.serving.server import Server, listen

MODEL = "@quickstart/model"


@contextmanager
def running(
    models: Mapping[str, AnsweringModel] | None = None, **settings: Any
) -> Iterator[tuple[str, Server]]:
    """Serves until the block ends; yields the server's root URL and the server."""
    config = ServeConfig(**{"model": MODEL, "port": 0} | settings)
    listener = listen(config)
    app = make_app(models or load_models(config), config)
    server = Server(app, config, Reporter(quiet=True))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.02)
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

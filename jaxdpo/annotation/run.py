"""`jaxdpo studio` from its configuration to the end of its process."""

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from jaxdpo.annotation.answering import Answering
from jaxdpo.annotation.app import make_app
from jaxdpo.annotation.config import StudioConfig
from jaxdpo.annotation.studio import make_studio
from jaxdpo.annotation.tasks import check_answerable, read_tasks
from jaxdpo.cli.console import Reporter
from jaxdpo.data.pairs import Message
from jaxdpo.errors import UserError
from jaxdpo.feedback.store import FeedbackStore
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.serving.answering import AnsweringModel, AnswerSettings
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.connection import protocol
from jaxdpo.serving.loading import load_models

_RECEIVE_SECONDS = 30.0
_CONNECTIONS = 500
# Answers that each model draws at a time; more wait.
_BATCH = 8


class ServedModel:
    """A model of the serving engine, as the studio asks it."""

    def __init__(self, model: AnsweringModel, sampling: SamplingConfig) -> None:
        """Takes a model.

        Args:
          model: The model.
          sampling: How its answers are drawn; a seed of its own for each answer.
        """
        self._model = model
        # Without a seed the engine draws one: two answers to one prompt are to differ.
        self._settings = AnswerSettings(
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            stop=sampling.stop,
        )

    async def answer(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> AsyncIterator[str]:
        """Yields the pieces of one answer.

        Args:
          messages: The conversation.
          tools: Function definitions for the chat template.
        """
        async for piece in self._model.answer(messages, self._settings, tools):
            yield piece.text

    def start(self) -> None:
        """Starts the thread that computes."""
        self._model.scheduler.start()

    def stop(self) -> None:
        """Ends it."""
        self._model.scheduler.stop()


def studio(config: StudioConfig) -> None:
    """Loads models and serves the page until the process is told to end.

    Raises:
      UserError: For whatever the user can fix.
    """
    reporter = Reporter()
    # What costs nothing is looked at before any model is loaded.
    tasks = read_tasks(config.data)
    check_answerable(tasks, bool(config.models))
    store = FeedbackStore(Path(config.folder).expanduser())
    # The port is taken before models are loaded, which may be minutes: a taken one is said at once.
    with _listener(config) as listener:
        models = _loaded(config)
        app = make_app(make_studio(config, store, models, tasks))
        host, port = listener.getsockname()[:2]
        reporter.say(
            f"{len(tasks)} rows, {len(models)} models; everything is kept in {config.folder}"
        )
        shown = f"[{host}]" if ":" in host else host
        reporter.say(f"open http://{shown}:{port}/ (Ctrl-C ends it)")
        # No log of requests: addresses name conversations, and those are people's own.
        uvicorn.Server(
            uvicorn.Config(
                app,
                # Whoever sends a request slowly, or opens connections without end, holds nobody up.
                http=protocol(_RECEIVE_SECONDS),
                ws="none",
                limit_concurrency=_CONNECTIONS,
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=3,
            )
        ).run(sockets=[listener])


def _loaded(config: StudioConfig) -> Mapping[str, Answering]:
    if not config.models:
        return {}
    served = load_models(ServeConfig(models=dict(config.models), batch_size=_BATCH))
    return {name: ServedModel(model, config.sampling) for name, model in served.items()}


def _listener(config: StudioConfig) -> socket.socket:
    """Opens the address to listen at.

    Raises:
      UserError: If it is taken, or none of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        # So that a studio that was just ended can be started again at its address.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"{config.host}:{config.port}: cannot listen there: {error.strerror}; set host and port"
        ) from error
    return listener

"""A look at every request: its line in the log, its numbers, and where it says it is sent to."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxdpo.cli.console import plain
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.metrics import Metrics
from jaxdpo.serving.replies import CLIENT_GONE, error_reply

log = logging.getLogger("jaxdpo.serving")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Watched:
    """An application whose requests are counted and logged.

    Neither key nor query, prompt or answer is in a line of the log.
    """

    def __init__(self, app: ASGIApp, settings: ServeConfig, metrics: Metrics):
        """Wraps an application.

        Args:
          app: The application.
          settings: Whether there is a key, and whether requests are logged.
          metrics: The server's numbers.
        """
        self._app, self._metrics = app, metrics
        # A page of another site can have its name stand for 127.0.0.1 and then read this server's
        # answers (DNS rebinding), but its requests keep that name. With a key it has nothing.
        self._hosts = None if settings.has_key else {*_LOCAL, settings.host.lower()}
        self._logged = settings.log != "none"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and notes what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._is_known_host(scope):
                await self._app(scope, receive, noting)
            else:
                refused = RequestError(
                    421, "the Host header names another server; ask at 127.0.0.1 or localhost"
                )
                await error_reply(refused)(scope, receive, noting)
        except Exception:
            # A defect: the reply of it is sent by what is outside of this.
            status = 500
            raise
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _is_known_host(self, scope: Scope) -> bool:
        if self._hosts is None:
            return True
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        name = host.decode("latin-1").lower()
        # The port behind the last colon, unless that is one of an IPv6 address in brackets.
        return (name if name.endswith("]") else name.rpartition(":")[0] or name) in self._hosts

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # Paths that no route has are not counted by their names: there is no end of them.
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._metrics.add("requests_total", path=path, status=str(status))
        self._metrics.observe("request_seconds", seconds, path=path)
        if self._logged:
            log.info(
                "%s %s %d %.3f s", scope["method"], plain(scope["path"][:200]), status, seconds
            )


def log_texts(settings: ServeConfig, model: str, asked: Any, answers: Sequence[str]) -> None:
    """Logs prompt and answers, if that was asked for.

    Args:
      settings: What is logged.
      model: Name of the model.
      asked: The prompt.
      answers: The answers to it.
    """
    if settings.log == "texts":
        line = {"model": model, "asked": asked, "answers": list(answers)}
        log.info("%s", json.dumps(line, ensure_ascii=False))

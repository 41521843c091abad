"""The process that serves: listens, answers until it is told to end, and lets answers finish."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from jaxdpo.cli.console import Reporter
from jaxdpo.errors import UserError
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.connection import protocol

# What a shell reports of a process that SIGTERM ended, and of one that Ctrl-C ended.
_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Server(uvicorn.Server):
    """A server that says where it listens, and which signal ended it.

    Attributes:
      reporter: Shows its messages.
      ended_by: The signal that it was told to end by; None otherwise.
    """

    def __init__(self, app: FastAPI, settings: ServeConfig, reporter: Reporter):
        """Configures a server; nothing is listened to yet.

        Args:
          app: The application.
          settings: Bounds.
          reporter: Shows its messages.
        """
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(limits.receive_timeout),
                ws="none",
                # The messages of a server that comes and goes are this class's; requests are logged
                # by the application, which knows what must not be in a log.
                log_config=None,
                access_log=False,
                limit_concurrency=limits.connections,
                # Only a backstop: `shutdown` gives answers up in order, long before.
                timeout_graceful_shutdown=int(limits.drain + limits.receive_timeout) + 1,
                server_header=False,
            )
        )
        self.reporter, self._models = reporter, app.state.models
        self._drain = limits.drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ended_by: signal.Signals | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, and says where it can be reached."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            self.reporter.say(f"serving at http://{host}:{port}/v1; Ctrl-C ends it")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets the answers under way finish, or gives them up when the time is over."""
        timer = asyncio.get_running_loop().call_later(self._drain, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        # Whoever waits is told so; cancelling the tasks would cut their replies off.
        for model in self._models.values():
            model.scheduler.give_up()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end; a second signal does not wait for the answers under way."""
        if self.ended_by is not None:
            # In the loop, and not in this handler: it may have interrupted the very code that holds
            # the lock that giving up takes.
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._give_up)
            return
        self.ended_by = signal.Signals(sig)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Has the signals that end a process end the server in order, within the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # uvicorn's own raises the signal again afterwards, by which the process would die before it
        # could say with which status.
        before = {each: signal.signal(each, self.handle_exit) for each in _STATUS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def listen(settings: ServeConfig) -> socket.socket:
    """Takes the address before any model is loaded, so that one that is taken is said at once.

    Raises:
      UserError: If the address cannot be had.
    """
    try:
        [(family, kind, number, _, address), *_] = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )
        listener = socket.socket(family, kind, number)
        # Connections of a server that has just ended keep the address for a minute otherwise.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"host={settings.host} port={settings.port}: cannot be listened at: {error.strerror}; "
            "set another port, or port=0 for any that is free"
        ) from None
    return listener


def run_server(server: Server, listener: socket.socket) -> None:
    """Serves until the process is told to end.

    Args:
      server: The server.
      listener: The socket that it listens at.

    Raises:
      SystemExit: With the status that a shell reports of a process that the signal ended: 130 after
        Ctrl-C, 143 after SIGTERM.
    """
    server.run([listener])
    if server.ended_by is not None:
        server.reporter.say(f"{server.ended_by.name}: the server has ended")
        raise SystemExit(_STATUS[server.ended_by])

"""A server that is started on a model, asked, and stopped: `jaxdpo serve`, vLLM or another.

config = StartedServerConfig(command="vllm serve {model} --port {port}")
with StartedServer(config, "runs/first/model", Path("server.log"), reporter.say) as server:
    answers = list(server.ask(wanted, sampling))  # starts it
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pydantic import Field, field_validator

from jaxdpo.errors import UserError
from jaxdpo.generation.server import ServerConfig, ask_server
from jaxdpo.generation.to_file import Wanted
from jaxdpo.sampling.answers import Answer
from jaxdpo.sampling.config import SamplingConfig

# Seconds that a server gets to end by itself; vLLM's workers take some.
_STOP_SECONDS = 20.0
# Seconds between two looks at whether it answers.
_LOOK_SECONDS = 0.1
# Lines of its log that an error shows.
_LOG_LINES = 8


class StartedServerConfig(ServerConfig):
    """A server that is started on the model that is to answer, and how it is asked."""

    command: str = Field(
        default="jaxdpo serve {model} port={port}",
        description="starts the server, such as 'vllm serve {model} --port {port}'; {model} and "
        "{port} are filled in, and /health must say when it answers",
    )
    port: int = Field(default=0, ge=0, le=65535, description="its port; 0 for any that is free")
    start_timeout: float = Field(
        default=600.0, gt=0, description="seconds until it must answer after its start"
    )

    @field_validator("command")
    @classmethod
    def _has_places(cls, command: str) -> str:
        for place in ("{model}", "{port}"):
            if place not in command:
                raise ValueError(f"{command!r} lacks {place}, which is filled in for each round")
        try:
            shlex.split(command)
        except ValueError as error:
            raise ValueError(f"{command!r} is no command line: {error}") from None
        return command


class StartedServer:
    """A server of one model, for the length of a block; it is started by the first question.

    Its output goes to a file. Whatever ends the block (an error, Ctrl-C, SIGTERM) stops the server,
    with all processes that it started.
    """

    def __init__(
        self, config: StartedServerConfig, model: str, log: Path, say: Callable[[str], None]
    ) -> None:
        """Describes a server; nothing is started yet.

        Args:
          config: The command and its bounds.
          model: The model that it is started on.
          log: The file that its output is added to.
          say: Shows its address.
        """
        self._config, self._model, self._log, self._say = config, model, log, say
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def ask(self, wanted: Sequence[Wanted], sampling: SamplingConfig) -> Iterator[Answer]:
        """Yields answers as they come.

        Args:
          wanted: Prompts, each with the number of the sample.
          sampling: How completions are drawn.

        Raises:
          UserError: If the server does not start, refuses a request, or does not answer it.
        """
        if self._process is None:
            self._start()
        yield from ask_server(self._address, wanted, sampling, self._config)

    def __enter__(self) -> Self:
        """Begins the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the server, if it was started."""
        if self._process is not None:
            _stop(self._process)
            self._process = None

    def _start(self) -> None:
        port = self._config.port or _free_port()
        words = [
            word.replace("{model}", self._model).replace("{port}", str(port))
            for word in shlex.split(self._config.command)
        ]
        if words[0] == "jaxdpo":
            # This installation's, whatever stands first in the search path.
            words = [sys.executable, "-m", *words]
        try:
            with open(self._log, "ab") as log:
                # A session of its own: its processes are then ended together, and Ctrl-C in the
                # terminal reaches this process alone, which ends them in order.
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise UserError(
                f"server.command: {words[0]} cannot be started: {error.strerror}"
            ) from error
        url = f"http://127.0.0.1:{port}"
        self._wait_until_it_answers(f"{url}/health")
        name = self._name(f"{url}/v1/models")
        self._address = f"{url}/v1#{name}"
        self._say(f"{self._model} answers at {self._address}")

    def _wait_until_it_answers(self, url: str) -> None:
        process, end = self._process, time.monotonic() + self._config.start_timeout
        assert process is not None
        while True:
            with contextlib.suppress(OSError):
                _get(url)
                return
            status = process.poll()
            if status is not None:
                raise self._failure(f"ended with status {status} before it answered")
            if time.monotonic() > end:
                raise self._failure(
                    f"did not answer at {url} within {self._config.start_timeout:g} s; raise "
                    "server.start_timeout if it needs longer"
                )
            time.sleep(_LOOK_SECONDS)

    def _name(self, url: str) -> str:
        try:
            return str(json.loads(_get(url))["data"][0]["id"])
        except (OSError, ValueError, LookupError, TypeError):
            raise self._failure(f"lists no model at {url}") from None

    def _failure(self, what: str) -> UserError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])
        return UserError(f"server.command: the server {what}; {self._log} ends with\n{shown}")


def _get(url: str) -> bytes:
    # Without the proxies that a machine may be set up with: it is a server of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as reply:
        return bytes(reply.read())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it started: at its own pace first, then at once."""
    try:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:
        # Workers that outlived it too; also where a second Ctrl-C cut the waiting short.
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        # The session's first process gave its number to the group.
        os.killpg(process.pid, number)


@contextlib.contextmanager
def orderly_termination() -> Iterator[None]:
    """Has SIGTERM leave the block like an exception: as it is, it would leave servers behind."""
    in_main = threading.current_thread() is threading.main_thread()
    # Whoever has set a handler knows better.
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> Any:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

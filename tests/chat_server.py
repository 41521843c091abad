"""An OpenAI-compatible server in this process, which answers as a test wants it to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """The server's answer to one request: a reply, or an error."""

    text: str | None = "Good.\nPASS"
    status: int = 200
    body: str | None = None
    finish_reason: str = "stop"
    # Called before anything is sent: to wait, or to stop the server.
    first: Callable[[], object] = lambda: None


@dataclass
class Server:
    """A running server.

    Attributes:
      url: Its base URL.
      requests: The bodies of all requests, in the order in which they came.
    """

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None


@contextmanager
def serving(respond: Callable[[dict[str, Any], int], Response]) -> Iterator[Server]:
    """A server whose `respond` is given a request's body and how many came before it."""
    server, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(body)
            response = respond(body, number)
            response.first()
            content = (response.body or json.dumps(_completion(response))).encode()
            try:
                self.send_response(response.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("retry-after-ms", "10")
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client gave up, or died

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        http.shutdown()
        http.server_close()

    server.stop = stop
    try:
        yield server
    finally:
        stop()
        thread.join()


def _completion(response: Response) -> dict[str, Any]:
    if response.status != 200:
        return {"error": {"message": f"status {response.status}", "type": "error"}}
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": response.finish_reason,
            "message": {"role": "assistant", "content": response.text},
        }],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip

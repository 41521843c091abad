"""A Hub on loopback that takes repositories, commits and large files as the real one does.

The requests are those of huggingface_hub's own client; see its `hf_api.py` and `lfs.py`, and
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_tests"


class FakeHub(ThreadingHTTPServer):
    """A Hub on loopback that keeps what was uploaded.

    Attributes:
      visibility: Repository ↦ "private" or "public".
      files: Path ↦ content of the last commit.
      blobs: SHA-256 ↦ content of large files.
      sent: SHA-256 of each large file, in the order of arrival.
      messages: Messages of the commits.
      accepts: Large files that are taken before the connection is refused; None for all.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.visibility: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.messages: list[str] = []
        self.accepts: int | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self, status: int, value: object = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
            self._answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer(200, {"transfer": "basic", "objects": list(self._batch(json.loads(body)))})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        found = re.match(r"/api/models/([^/]+/[^/]+)", self.path)
        if found and found[1] in self.server.visibility:
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer(200, {"id": found[1], "sha": "0" * 40, "siblings": siblings})
        else:
            self._answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        body, digest = self._body(), self.path.rpartition("/")[2]
        with self.server.lock:
            full = self.server.accepts is not None and len(self.server.sent) >= self.server.accepts
            if not full:
                self.server.sent.append(digest)
                self.server.blobs[digest] = body
        assert full or hashlib.sha256(body).hexdigest() == digest
        self._answer(400 if full else 200, {})

    def _create(self, asked: dict) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.server.visibility:
            self._answer(409, {"error": "You already created this repo", "url": repo})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.visibility[repo] = "private" if private else "public"
        self._answer(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def _batch(self, asked: dict) -> Iterator[dict]:
        for each in asked["objects"]:
            known = each["oid"] in self.server.blobs
            upload = {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}
            yield {**each, **({} if known else {"actions": upload})}

    def _commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.url}/org/name/commit/{'1' * 40}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": "1" * 40})


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    """Serves a Hub while the block runs."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()

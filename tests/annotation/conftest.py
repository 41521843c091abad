"""Studios to ask, and a browser to ask them with."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Studio:
    """A running studio that can be killed and started again at the same address."""

    def __init__(self, nursery, folder, settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self._nursery, self._settings = nursery, {**settings, "folder": str(folder)}
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self._nursery.stdin.write(json.dumps({**self._settings, "port": self.port}) + "\n")
        self._nursery.stdin.flush()
        self.pid = int(self._nursery.stdout.readline())
        deadline = time.time() + 60
        while time.time() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/static/icon.svg", timeout=5).read()
                return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(f"no studio at {self.url}")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        while True:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.005)


@pytest.fixture(scope="session")
def nursery():
    pytest.importorskip("fastapi", reason="needs pip install 'jaxdpo[studio]'")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fake_studio.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def studio(nursery, tmp_path):
    """`studio(**settings)` starts one."""
    started = []

    def start(**settings):
        started.append(Studio(nursery, tmp_path / f"feedback{len(started)}", settings))
        return started[-1]

    yield start
    for each in started:
        each.kill()


# For each file anew: Playwright's loop runs as long as it is open, and no other test in the process
# could open a browser of its own meanwhile.
@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, since containers often forbid making one.
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """`visit(studio, "/chat", annotator="ann", …)` opens a page in a browser of its own.

    Every request must stay on this machine, and no script may fail.
    """
    contexts, faults = [], []

    def open_page(studio, path="/", annotator=None, **settings):
        context = browser.new_context(**settings)
        context.set_default_timeout(30_000)
        contexts.append(context)
        context.on(
            "request",
            lambda request: (
                request.url.startswith("http://127.0.0.1:") or faults.append(request.url)
            ),
        )
        if annotator:
            context.add_cookies([{"name": "studio", "value": annotator, "url": studio.url}])
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(studio.url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []

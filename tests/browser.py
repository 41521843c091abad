"""Opens pages in Debian's Chromium, for tests that need a browser's own judgement."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

CHROMIUM = shutil.which("chromium")


class Seen(NamedTuple):
    """The findings of a browser that opened a page."""

    overflow: int
    requests: list[str]
    errors: list[str]
    images: int


def look(page_file: Path, width: int, scheme: str) -> Seen:
    """Opens a page at a width in a colour scheme, or skips the test where there is no browser.

    Args:
      page_file: The page.
      width: Of the window, in CSS pixels.
      scheme: "light" or "dark".
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install -y chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            viewport = {"width": width, "height": 800}
            page = browser.new_context(color_scheme=scheme, viewport=viewport).new_page()
            requests, errors = [], []
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: errors.append(message.text))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(page_file.resolve().as_uri())
            root = "document.documentElement"
            overflow = page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
            # Sorting every table by every column runs the page's script through.
            for button in page.locator("th button").all():
                button.click()
            images = page.locator("img").count()
            return Seen(overflow, requests[1:], errors, images)
        finally:
            browser.close()

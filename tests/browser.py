"""A page opened in the system's Chromium, offline: any request, script error or console error fails the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def opened(chromium: str, path: Path, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """The page after its scripts have run. Raises AssertionError at the end when it asked for anything beyond itself."""
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        address = path.resolve().as_uri()
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url) if request.url != address and not request.url.startswith("data:") else None
            ),
        )
        page.goto(address)
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        yield page
        browser.close()
    assert wrong == []

"""A headless Chromium with the page in it. Where there is none, these tests are skipped and say so.

The browser is the first of: the file that CHROMIUM names, the one that Playwright installed, one on the PATH.
Screenshots go to the folder that SCREENSHOTS names, else to build/screenshots.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from canned_server import Canned, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", Path(__file__).parents[2] / "build/screenshots"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    reason = "Playwright is not installed; make test-browser installs it"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    with playwright.sync_playwright() as started:
        executable = _executable(started.chromium.executable_path)
        if executable is None:
            pytest.skip("no Chromium: neither CHROMIUM, nor Playwright, nor the PATH has one; run make test-browser")
        # Its sandbox refuses to work for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = started.chromium.launch(executable_path=executable, args=arguments)
        yield launched
        launched.close()


def _executable(installed: str) -> str | None:
    if named := os.environ.get("CHROMIUM"):
        return named
    if Path(installed).exists():
        return installed
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``open_page(url, width=1440, height=900, **context)``: a page whose scripts never complain."""
    contexts, complaints = [], []

    def listen(page: Page) -> None:
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _complaint(message, complaints))

    def open_(url: str, width: int = 1440, height: int = 900, **options: Any) -> Page:
        options.setdefault("reduced_motion", "reduce")
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        listen(page)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _complaint(message: Any, complaints: list[str]) -> None:
    # Chromium writes each answer of 4xx or 5xx and each lost connection to the console; what the page makes of them is
    # tested.
    if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
        complaints.append(message.text)


@pytest.fixture(scope="session")
def canned() -> Canned:
    return Canned()


@pytest.fixture(scope="session")
def url(canned: Canned) -> Iterator[str]:
    """The address of a server that nothing is wrong with."""
    with serving(canned) as address:
        yield address


@pytest.fixture
def page(open_page: Callable[..., Page], url: str) -> Page:
    """The page with its first reader's timeline."""
    opened = open_page(url)
    opened.wait_for_selector(".post")
    return opened


@pytest.fixture(scope="session")
def keep() -> Callable[[Page, str], None]:
    """Keep a screenshot under a name."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=SCREENSHOTS / f"{name}.png") and None

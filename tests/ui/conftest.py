"""One real browser for the tests of pages, and a tab that remembers what went wrong in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.ui.fetch_browser import HOME, system_browser

WIDTH = 1000


@dataclass
class Tab:
    """A page, what it complained of, and what it asked the network for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Before anything is opened."""
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Without a window; as root too, so without its sandbox: it opens our own files only."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(chromium_sandbox=False, **_program())
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a file in a tab of its own, 1000 pixels wide, in the light or in the dark."""
    tabs = list[Tab]()

    def open_in(path: Path, scheme: Any = "light") -> Tab:
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme=scheme)
        tabs.append(tab := Tab(page))
        tab.listen()
        page.goto(path.as_uri())
        return tab

    yield open_in
    for tab in tabs:
        tab.page.close()


def _program() -> dict[str, Any]:
    """The fetched browser with its own libraries and fonts, or the machine's."""
    if HOME.exists():
        own = {"LD_LIBRARY_PATH": str(HOME / "lib"), "FONTCONFIG_FILE": str(HOME / "fonts.conf")}
        return {"executable_path": str(HOME / "chromium"), "env": {**os.environ, **own}}
    program = system_browser()
    if program is None:
        pytest.fail(
            "There is no Chromium here. `python -m tests.ui.fetch_browser` fetches one, or says "
            'why it can\'t; make test ARGS="--without browser" leaves its tests out.'
        )
    return {"executable_path": program}

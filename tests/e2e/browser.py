"""A real Chromium or Firefox, headless, with a recording as its microphone and a recorder in every page."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Route, sync_playwright

from benchmarks.browser import running_chromium
from tests.e2e.firefox import launcher
from tests.e2e.sound_server import running_sound_server
from webrtc.files.codecs import Samples

RECORDED_RATE = 48000
RECORDER = Path(__file__).with_name("recorder.js")


@dataclass
class Tab:
    """One page, with what it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def sound(self, side: int) -> Samples:
        """What was recorded so far at 48 kHz: 0 the microphone, 1 the other side of the call; one clock for both."""
        pcm = np.frombuffer(base64.b64decode(self.page.evaluate("(side) => recorder.sound(side)", side)), "<i2")
        return np.asarray(pcm, np.float32) / np.float32(32768)

    def route(self) -> dict[str, Any]:
        """The pair of candidates in use, as `getStats` tells it."""
        route: dict[str, Any] = self.page.evaluate("recorder.route()")
        return route


@contextmanager
def running_firefox(playwright: Playwright, microphone: Path) -> Iterator[Browser]:
    """Its microphone hears a WAV file once, from now on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_sound_server() as sound_server:
            browser = playwright.firefox.launch(
                channel="moz-firefox",
                executable_path=launcher(folder),
                env=dict(sound_server.environment),
                firefox_user_prefs={"media.navigator.permission.disabled": True, "media.autoplay.default": 0},
            )
            try:
                with sound_server.speaking(microphone):
                    yield browser
            finally:
                browser.close()


@contextmanager
def open_tab(url: str, microphone: Path, *, browser: str = "chromium", relay_only: bool = False) -> Iterator[Tab]:
    """Opens a page in a browser of its own whose microphone hears a WAV file once.

    Chromium's begins when a page asks for the microphone, Firefox's when the page is about to open.
    """
    started = {"chromium": running_chromium, "firefox": running_firefox}[browser]
    with sync_playwright() as playwright, started(playwright, microphone) as running:
        page = running.new_page(bypass_csp=True)  # the page's own policy forbids the recorder's worklet
        tab = Tab(page)
        page.on("console", lambda message: _note(tab, message))
        page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        page.add_init_script(f"window.relayOnly = {str(relay_only).lower()};")
        page.add_init_script(path=RECORDER)
        if browser == "firefox":  # for which Playwright lifts no policy
            page.route(f"{url}/", _without_policy)
        page.goto(url)
        yield tab


def _without_policy(route: Route) -> None:
    response = route.fetch()
    headers = {name: value for name, value in response.headers.items() if name != "content-security-policy"}
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", response.text())
    route.fulfill(response=response, headers=headers, body=page)


def _note(tab: Tab, message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        tab.complaints.append(f"{message.type}: {message.text}")

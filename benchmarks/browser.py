"""A real Chromium, headless, with a recording as its microphone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Where the browser is."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def running_chromium(playwright: Playwright, microphone: Path, *, again: bool = False) -> Iterator[Browser]:
    """Its microphone hears a WAV file from the moment it is asked for: once, or again and again."""
    browser = playwright.chromium.launch(
        executable_path=chromium(),
        args=[
            "--no-sandbox",  # it may run as root
            "--disable-gpu",
            "--autoplay-policy=no-user-gesture-required",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}{'' if again else '%noloop'}",
        ],
    )
    try:
        yield browser
    finally:
        browser.close()

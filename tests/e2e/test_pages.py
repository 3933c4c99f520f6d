"""The page and the description of the API in a real browser, as a server with a key gives them out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.browser import chromium
from configs.serve import Limits, RtcArgs
from serve_app.access import Access
from serve_app.calls.rtc import Rtc
from serve_app.http import create_app
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.fakes import CallRoom
from tests.serve_app.calls.test_rtc import NamedOwners
from tests.serve_app.fakes import EchoBackend, recordings_over, serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(chromium() is None, reason="not installed: chromium (see `make test-programs`)"),
]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    room = CallRoom(RtcArgs())
    replicas: dict[str, Rtc] = {}
    rtc = replicas["here"] = Rtc(room.calls, NamedOwners("here", replicas), list, room.args)
    app = create_app(recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits()), rtc, Access(key="sesame"))
    with serving(app, ws="websockets-sansio") as url:
        yield url


@contextmanager
def tab() -> Iterator[tuple[Page, list[str]]]:
    """A page with its own policy in force, what it complained about, and what it fetched from elsewhere."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    complaints.append(request.url)
                    if urlsplit(request.url).hostname not in ("127.0.0.1", "", None)
                    else None
                ),
            )
            yield page, complaints
        finally:
            browser.close()


def test_the_page_asks_for_the_key_and_sends_it_everywhere(url: str) -> None:
    with tab() as (page, complaints):
        page.goto(url)
        expect(page.get_by_test_id("notice")).to_have_attribute("data-code", "invalid_api_key")
        expect(page.get_by_test_id("voice")).to_have_count(0)
        page.get_by_test_id("notice-action").click()
        page.get_by_test_id("key-value").fill("sesame")
        page.get_by_test_id("key-save").click()
        expect(page.get_by_test_id("voice").first).to_be_visible()
        expect(page.get_by_test_id("notice")).to_be_hidden()
        said = page.evaluate(
            """async () => {
                const { socketUrl } = await import("./api.js");
                const socket = new WebSocket(socketUrl());
                return JSON.parse(await new Promise((done) => (socket.onmessage = ({ data }) => done(data))));
            }"""
        )
        assert said["type"] == "hello"
        assert complaints == []


def test_the_description_of_the_api_works_with_nothing_from_elsewhere(url: str) -> None:
    with tab() as (page, complaints):
        page.goto(f"{url}/docs")
        expect(page.locator("#key")).to_be_visible()
        page.locator("#key").fill("sesame")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator(".opblock").first).to_be_visible()
        assert page.locator(".opblock").count() > 10
        page.locator("#operations-models-list_models_v1_models_get").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("200")
        assert complaints == []

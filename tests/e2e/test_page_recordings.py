"""Recordings in the page: real browser, real HTTP app, real files; the voice is the source itself."""

from __future__ import annotations

import base64
import io
import re
import threading
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, FilePayload, Locator, Page, expect, sync_playwright

from benchmarks.browser import chromium
from configs.serve import Limits, RtcArgs
from serve_app.access import Access
from serve_app.calls.rtc import Rtc
from serve_app.http import create_app
from serve_app.recordings.service import Recordings
from serve_app.threads import in_thread
from serve_app.voices.folder import FolderVoiceStore
from stages.types import Samples, StoredVoice
from tests.serve_app.calls.fakes import CallRoom
from tests.serve_app.calls.test_rtc import NamedOwners
from tests.serve_app.fakes import EchoBackend, EchoStream, recordings_over, serving, tone, wait_until, wav_file

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(chromium() is None, reason="not installed: chromium (see `make test-programs`)"),
]

LIMITS = Limits(max_source_s=20.0, max_upload_bytes=2_000_000, max_conversions=2, retry_after_s=1)
RATE = 22050
SPEECH = wav_file(tone(4.0, RATE), RATE)
File = tuple[str, bytes]
expect.set_options(timeout=30000)  # ms; a busy machine is no failure


class Gated(EchoStream):
    """Gives its first two seconds at once, the rest when the gate is open."""

    def __init__(self, backend: GatedBackend, sample_rate: int) -> None:
        super().__init__(backend, sample_rate)
        self._gate = backend.gate
        self._open_samples = 2 * sample_rate

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        self._open_samples -= len(samples)
        if self._open_samples < 0:
            while not await in_thread(self._gate.wait, 0.05):
                pass
        async for wave_ in super().push(samples):
            yield wave_


class GatedBackend(EchoBackend):
    """Says back what it hears, when its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def recording(self, voice: StoredVoice, *, sample_rate: int, **options: object) -> EchoStream:
        super().recording(voice, sample_rate=sample_rate, **options)
        return Gated(self, sample_rate)


class Served:
    """A running server and what is behind it."""

    def __init__(self, url: str, backend: GatedBackend, service: Recordings) -> None:
        self.url, self.backend, self.service = url, backend, service

    @property
    def is_idle(self) -> bool:
        return self.service.running_conversions == 0 and self.backend.open_streams == 0


@contextmanager
def running(folder: Path, limits: Limits, key: str = "") -> Iterator[Served]:
    """The whole HTTP app with its page."""
    backend = GatedBackend()
    room = CallRoom(RtcArgs())
    replicas: dict[str, Rtc] = {}
    rtc = replicas["here"] = Rtc(room.calls, NamedOwners("here", replicas), list, room.args)
    service = recordings_over(backend, FolderVoiceStore(folder), limits)
    with serving(create_app(service, rtc, Access(key=key)), ws="websockets-sansio") as url:
        yield Served(url, backend, service)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with running(tmp_path / "voices", LIMITS) as served:
        yield served
        served.backend.gate.set()
        wait_until(lambda: served.is_idle, "every conversion has ended")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of a fresh profile; the test fails where the page threw, or broke its own content policy."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def open_recordings(page: Page, url: str) -> None:
    """Opens the page, at its recordings."""
    page.goto(f"{url}/#recordings")
    expect(page.get_by_test_id("voice").first).to_be_visible()


def drop(page: Page, *files: File) -> None:
    """Drops files on the page."""
    named = [(name, base64.b64encode(data).decode()) for name, data in files]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            for (const [name, data] of files) transfer.items.add(new File([bytes(data)], name));
            return transfer;
        }""",
        named,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(row(page, files[0][0])).to_be_visible()


def row(page: Page, name: str) -> Locator:
    """One recording of the list."""
    return page.get_by_test_id("recording").filter(has_text=name)


def convert(page: Page, *files: File) -> None:
    """Drops files and starts them."""
    drop(page, *files)
    page.get_by_test_id("convert").click()


def note(page: Page, name: str) -> Locator:
    """What is said of a recording."""
    return row(page, name).get_by_test_id("recording-note")


def in_state(page: Page, name: str, state: str) -> None:
    """Waits until a recording is in that state."""
    expect(row(page, name)).to_have_attribute("data-state", state)


def saved(page: Page, name: str) -> tuple[str, bytes]:
    """Name and bytes of a downloaded result."""
    with page.expect_download() as download:
        row(page, name).get_by_test_id("save").click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def places(page: Page) -> dict[str, float]:
    """Where each side is that plays now, in seconds."""
    found: dict[str, float] = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll("audio")]
          .filter((each) => each.src && !each.paused).map((each) => [each.id, each.currentTime]))"""
    )
    return found


def heard(page: Page, side: str, beyond_s: float) -> float:
    """Waits until one side plays alone and is beyond a place; the place."""
    page.wait_for_function(
        """([side, beyond]) => {
          const all = [...document.querySelectorAll("audio")].filter((each) => each.src && !each.paused);
          return all.length === 1 && all[0].id === side && all[0].currentTime > beyond;
        }""",
        arg=[side, beyond_s],
    )
    return places(page)[side]


def test_one_bad_file_stops_no_other_and_the_result_is_heard_at_the_place_of_the_source(
    page: Page, server: Served
) -> None:
    open_recordings(page, server.url)
    page.get_by_role("radio", name="Clara").check(force=True)
    convert(page, ("interview.wav", SPEECH), ("notes.txt", b"no sound in here" * 50), ("talk.wav", SPEECH))
    for name, state in {"interview.wav": "done", "notes.txt": "failed", "talk.wav": "done"}.items():
        in_state(page, name, state)
    expect(note(page, "notes.txt")).to_have_text("This is not a recording: there is no sound in it that could be read.")
    expect(page.get_by_test_id("recordings-summary")).to_have_text("2 of 3 converted, 1 failed.")
    asked = [(call["voice_id"], call["streaming"]) for call in server.backend.calls]
    assert asked == [("clara", False)] * 2  # in long windows, though the answer is streamed

    interview = row(page, "interview.wav")
    interview.get_by_test_id("play").click()
    before = heard(page, "after", 0.3)
    interview.get_by_test_id("side").click()
    assert before < heard(page, "before", before) < before + 1.5
    page.wait_for_timeout(200)
    interview.get_by_test_id("side").focus()
    page.keyboard.press("Space")
    assert heard(page, "after", before + 0.2)
    row(page, "talk.wav").get_by_test_id("play").click()
    expect(interview.get_by_test_id("play")).to_have_attribute("data-playing", "false")
    heard(page, "after", 0.0)  # one plays at a time
    assert float(interview.get_by_test_id("place").input_value()) > before

    name, data = saved(page, "interview.wav")
    assert name == "interview (Clara).wav"
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        assert file.getnframes() == 4 * RATE  # not what the header of a stream says


def test_each_is_cancelled_alone_or_with_all_and_its_place_is_free(page: Page, server: Served) -> None:
    open_recordings(page, server.url)
    server.backend.gate.clear()
    convert(page, *[(f"{number}.wav", SPEECH) for number in range(1, 5)])
    for name in ("1.wav", "2.wav"):
        expect(note(page, name)).to_have_text("Converting: 0:01 of 0:04")
    expect(note(page, "3.wav")).to_have_text("Waiting for its turn.")
    wait_until(lambda: server.service.running_conversions == 2, "two run")
    page.get_by_role("button", name="Cancel 1.wav").click()
    in_state(page, "1.wav", "cancelled")
    expect(note(page, "3.wav")).to_have_text(re.compile("^Converting"))
    wait_until(lambda: server.service.running_conversions == 2, "the third has the place of the first")
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    with page.expect_event("dialog"):
        page.evaluate("location.reload()")
    page.get_by_test_id("cancel-all").click()
    wait_until(lambda: server.is_idle, "all places are free")
    expect(page.get_by_test_id("recordings-count")).to_have_text("")
    server.backend.gate.set()
    page.get_by_role("button", name="Try again: 4.wav").click()
    in_state(page, "4.wav", "done")
    assert server.service.running_conversions == 0
    page.get_by_role("button", name="Remove 4.wav").click()
    expect(row(page, "4.wav")).to_have_count(0)
    page.evaluate("location.reload()")
    expect(page.get_by_test_id("recording")).to_have_count(0)
    assert asked == ["beforeunload"]  # nothing was left to lose


def test_a_full_server_is_waited_for(page: Page, server: Served) -> None:
    open_recordings(page, server.url)
    server.backend.gate.clear()
    with server.service.admitted():  # somebody else
        convert(page, ("1.wav", SPEECH), ("2.wav", SPEECH))
        expect(page.get_by_text(re.compile(r"The server is full: next try in \d s\."))).to_be_visible()
        assert server.service.running_conversions == 2
        server.backend.gate.set()
    for name in ("1.wav", "2.wav"):
        in_state(page, name, "done")


def test_what_goes_wrong_is_said_in_a_sentence(page: Page, server: Served) -> None:
    added = httpx.post(f"{server.url}/v1/voices/add", data={"name": "Visitor"}, files={"files": SPEECH})
    visitor = added.json()["voice_id"]
    open_recordings(page, server.url)
    long = wav_file(tone(25.0, 8000), 8000)
    drop(page, ("long.wav", long), ("large.wav", bytes(2_000_001)), ("empty.mp3", b""))
    expect(page.get_by_test_id("left-out")).to_have_text("Left out: 1 larger than 2.0 MB.")
    page.get_by_test_id("convert").click()
    sentence = "This is longer than the 20 s that this server takes. Cut it into parts."
    expect(note(page, "long.wav")).to_have_text(sentence)
    expect(note(page, "empty.mp3")).to_have_text("This file is empty.")
    assert server.backend.calls == []  # the long one was not sent
    page.get_by_role("button", name="Try again: long.wav").click()
    wait_until(lambda: len(server.backend.calls) == 1, "now it was")
    expect(note(page, "long.wav")).to_have_text(sentence)

    server.backend.gate.clear()
    convert(page, ("cut.wav", SPEECH))
    expect(note(page, "cut.wav")).to_have_text("Converting: 0:01 of 0:04")
    server.backend.failure = RuntimeError("a stage is gone")
    server.backend.gate.set()
    expect(note(page, "cut.wav")).to_have_text("The server broke off after 2 s. Try again.")

    server.backend.failure = None
    page.get_by_test_id("clear").click()
    convert(page, ("half.wav", SPEECH[: len(SPEECH) // 2]))
    in_state(page, "half.wav", "done")
    expect(note(page, "half.wav")).to_contain_text("cut off")
    page.get_by_role("radio", name="Visitor").check(force=True)
    httpx.delete(f"{server.url}/v1/voices/{visitor}").raise_for_status()
    row(page, "half.wav").get_by_role("button", name="Again").click()
    expect(note(page, "half.wav").last).to_have_text("That voice is gone. Choose another one and try again.")


def test_a_key_is_asked_for_and_the_rest_goes_on(page: Page, tmp_path: Path) -> None:
    with running(tmp_path, LIMITS, key="sesame") as server:
        page.add_init_script("sessionStorage.getItem('seedvc.key') ?? sessionStorage.setItem('seedvc.key', 'sesame')")
        open_recordings(page, server.url)
        page.evaluate("sessionStorage.setItem('seedvc.key', 'stale')")
        page.get_by_text("MP3").click()
        convert(page, ("1.wav", SPEECH), ("2.wav", SPEECH))
        expect(page.get_by_test_id("notice")).to_have_attribute("data-code", "invalid_api_key")
        expect(note(page, "1.wav")).to_have_text("Waiting for the key.")
        page.get_by_test_id("notice-action").click()
        page.get_by_test_id("key-value").fill("sesame")
        page.get_by_test_id("key-save").click()
        for name in ("1.wav", "2.wav"):
            in_state(page, name, "done")
        name, data = saved(page, "2.wav")
        assert name.endswith(".mp3") and data[:2] == b"\xff\xfb"


def test_a_folder_is_searched_for_recordings_up_to_a_bound(page: Page, server: Served, tmp_path: Path) -> None:
    folder = tmp_path / "takes"
    (folder / "day one" / "morning").mkdir(parents=True)
    for name in ("one.wav", "day one/two.wav", "day one/morning/three.wav", "day one/.hidden.wav", "cover.jpg"):
        (folder / name).write_bytes(SPEECH)
    open_recordings(page, server.url)
    drag = page.context.new_cdp_session(page)
    box = page.locator("#drop").bounding_box()
    assert box is not None
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        drag.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data})
    expect(page.get_by_test_id("recording")).to_have_count(3)
    expect(page.get_by_test_id("left-out")).to_have_text("Left out: 1 no recording.")
    page.get_by_test_id("choose-folder").set_input_files(folder)
    expect(page.get_by_test_id("recording")).to_have_count(6)
    many: list[FilePayload] = [
        {"name": f"{number}.wav", "mimeType": "audio/wav", "buffer": b"RIFF"} for number in range(96)
    ]
    page.get_by_test_id("choose-files").set_input_files(many)
    expect(page.get_by_test_id("recording")).to_have_count(100)
    expect(page.get_by_test_id("left-out")).to_have_text("Left out: 2 beyond the 100 that this list holds.")

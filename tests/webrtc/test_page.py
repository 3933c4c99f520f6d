"""The page in Chromium over a small real server: a call by keyboard, what goes wrong in words, access for everyone."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from benchmarks.browser import chromium
from tests.webrtc.page_server import PageServer, voice
from tests.webrtc.speech import speech_48k

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed (apt-get install chromium)"),
]

ELSEWHERE = "page.test"  # a host that is this machine, but which the browser does not trust
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
LIVE = re.compile("^Live")
Open = Callable[..., Page]
expect.set_options(timeout=30000)  # ms; a busy machine is no failure


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech for the fake microphone."""
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes((speech_48k() * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, microphone: Path) -> Iterator[Browser]:
    """One whose microphone hears speech and needs no permission."""
    fakes = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    fakes.append(f"--use-file-for-fake-audio-capture={microphone}")
    running = playwright.chromium.launch(executable_path=chromium(), args=[*FLAGS, *fakes])
    yield running
    running.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    running = PageServer()
    yield running
    running.close()


@pytest.fixture
def open_page(browser: Browser, server: PageServer) -> Iterator[Open]:
    """Opens the page in a fresh profile; the test fails where the page threw, or broke its own content policy."""
    errors: list[str] = []
    contexts = []

    def open_page(url: str = server.url, script: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
        if script:
            page.add_init_script(script)
        page.goto(url)
        expect(page.get_by_test_id("voice").first).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def call(page: Page) -> None:
    """Starts a call and waits until it is live."""
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_text(LIVE)


def notices(page: Page) -> Callable[[], list[str]]:
    """The titles of all messages from now on, also of those that pass quickly."""
    page.evaluate("""() => {
      const title = document.getElementById("notice-title");
      window.seen = [];
      new MutationObserver(() => title.textContent && seen.push(title.textContent)).observe(title, { childList: true });
    }""")
    return lambda: list(page.evaluate("seen"))


def test_a_call_by_keyboard_alone(open_page: Open, server: PageServer) -> None:
    page = open_page()
    page.get_by_role("radio", name="Clara").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="Martin")).to_be_checked()
    page.get_by_test_id("start").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("status")).to_have_text("Live: heard as Martin")
    expect(page.get_by_test_id("stop")).to_be_focused()
    page.keyboard.press("b")
    expect(page.get_by_test_id("bypass")).to_have_attribute("aria-checked", "true")
    expect(page.get_by_test_id("status")).to_have_text("Live: heard in your own voice")
    page.keyboard.press("m")
    expect(page.get_by_test_id("mute")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("level-in")).to_have_text("silent")
    page.keyboard.press("Control+b")
    expect(page.get_by_test_id("bypass")).to_have_attribute("aria-checked", "true")
    page.get_by_role("radio", name="Martin").focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_timeout(300)
    assert server.said("start")[0]["voice"] == "martin"
    changes = [{**change} for change in server.said("change")]
    assert changes == [{"type": "change", "bypass": True}, {"type": "change", "voice": "clara"}]
    page.get_by_test_id("stop").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("status")).to_have_text("Ready")
    expect(page.get_by_test_id("start")).to_be_focused()
    expect(page.get_by_test_id("mute")).to_have_attribute("aria-pressed", "false")
    assert server.said("stop")


def test_what_is_changed_while_a_call_connects_is_in_it(open_page: Open, server: PageServer) -> None:
    page = open_page()
    server.greets.clear()
    server.answers.clear()
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_text("Connecting")
    page.get_by_role("radio", name="Martin").focus()
    page.keyboard.press("Space")
    page.get_by_test_id("mode-constant").click()
    page.get_by_test_id("bypass").click()
    page.get_by_text("10", exact=True).click()
    page.get_by_text("Auto", exact=True).click()
    server.greets.set()
    while not server.said("start"):
        page.wait_for_timeout(50)
    page.get_by_test_id("bypass").click()
    page.wait_for_timeout(300)
    assert not server.said("change")
    server.answers.set()
    expect(page.get_by_test_id("status")).to_have_text("Live: heard as Martin")
    (start,) = server.said("start")
    wanted = {name: start[name] for name in ("voice", "mode", "steps", "bypass")}
    assert wanted == {"voice": "martin", "mode": "constant", "steps": None, "bypass": True}
    while not server.said("change"):
        page.wait_for_timeout(50)
    assert server.said("change") == [{"type": "change", "bypass": False}]


def test_letters_typed_into_a_field_are_no_shortcuts_and_shortcuts_can_be_switched_off(open_page: Open) -> None:
    page = open_page()
    call(page)
    page.get_by_test_id("add-voice").click()
    page.keyboard.type("mob")
    expect(page.get_by_test_id("add-name")).to_have_value("mob")
    page.keyboard.press("Escape")
    page.get_by_text("Keys M mute").click()
    page.keyboard.press("m")
    expect(page.get_by_test_id("mute")).to_have_attribute("aria-pressed", "false")


def test_the_figures_of_a_call(open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_test_id("mode-lowest-delay")).to_have_text("about 310 ms")
    expect(page.get_by_test_id("mode-constant-delay")).to_have_text("always 460 ms")
    call(page)
    figures = {"loss-up": "1.3", "blocks-done": "71", "blocks-late": "2", "blocks-dropped": "1", "blocks-skipped": "9"}
    figures |= {"stages-total": "93", "stage-diffusion": "52", "block-ms": "120", "jitter-up": "2"}
    for name, text in figures.items():
        expect(page.get_by_test_id(name)).to_have_text(text)
    expect(page.get_by_test_id("rtt")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.get_by_test_id("level-in")).to_have_text("good")
    expect(page.get_by_test_id("level-out")).to_have_text("good")
    assert 300 < int(page.get_by_test_id("delay").inner_text()) < 2000  # the parts, as told, sum up to 400 or more
    expect(page.get_by_test_id("mode-whole")).to_have_text("")
    page.get_by_test_id("mode-constant").click()
    expect(page.get_by_test_id("mode-whole")).to_have_text(re.compile(r"^Mouth to ear about \d+ ms: delay a video by"))
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("delay")).to_have_text("–")
    expect(page.get_by_test_id("mode-whole")).to_have_text("")


ADAPTED = {
    "block_ms": 120,
    "steps": 1,
    "more_delay_ms": 240,
    "needed_ms": 180,
    "message": "this computer needs 180 ms for 120 ms: longer blocks, 240 ms more delay",
}


def test_longer_blocks_are_told_and_can_be_declined(open_page: Open, server: PageServer) -> None:
    page = open_page()
    call(page)
    expect(page.get_by_test_id("adapted")).to_be_hidden()
    settings = {"type": "settings", "voice": "clara", "mode": "lowest", "block_ms": 360, "steps": 1, "bypass": False}
    server.tell({**settings, "adapted": ADAPTED})
    expect(page.get_by_test_id("adapted")).to_contain_text(
        "This computer needs 180 ms for 120 ms: longer blocks, 240 ms more delay."
    )
    expect(page.get_by_test_id("block-ms")).to_have_text("360")
    page.get_by_test_id("hold").click()
    expect(page.get_by_test_id("adapted")).to_be_hidden()
    expect(page.get_by_test_id("adapt")).not_to_be_checked()
    assert server.said("change") == [{"type": "change", "adapt": False}]
    page.get_by_test_id("stop").click()
    page.reload()
    expect(page.get_by_test_id("adapt")).not_to_be_checked()  # and so in the next call
    call(page)
    assert server.said("start")[-1]["adapt"] is False


def test_steps_are_not_offered_where_they_change_nothing(open_page: Open, server: PageServer) -> None:
    expect(open_page().get_by_test_id("steps")).to_be_visible()
    server.hello = {**server.hello, "steps": None}
    expect(open_page().get_by_test_id("steps")).to_be_hidden()


def test_a_recording_goes_on_over_a_lost_connection(open_page: Open, server: PageServer) -> None:
    page = open_page()
    call(page)
    seen = notices(page)
    page.get_by_test_id("record").click()
    expect(page.get_by_test_id("record-time")).to_have_text(re.compile("^0:0[1-9]$"))
    server.hang_up()
    while len(server.said("start")) < 2:
        page.wait_for_timeout(50)
    expect(page.get_by_test_id("status")).to_have_text(LIVE)
    assert seen() == ["Connection lost"]
    expect(page.get_by_test_id("notice")).to_be_hidden()
    assert [start.get("replaces") for start in server.said("start")] == [None, "s1"]
    expect(page.get_by_test_id("record")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("record-time")).to_have_text(re.compile("^0:(0[3-9]|[1-5].)$"))
    page.get_by_test_id("record").click()
    with page.expect_download() as download:
        page.get_by_test_id("download").click()
    assert download.value.suggested_filename == "seedvc-clara-1.wav"
    with wave.open(io.BytesIO(Path(download.value.path()).read_bytes())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 48000)
        seconds = file.getnframes() / file.getframerate()
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert seconds >= 2.9
    first, last = np.abs(sound[:48000]).max(), np.abs(sound[-48000:]).max()
    assert first > 0.05 and last > 0.05


def test_the_keyboard_is_not_lost_with_what_it_was_on(open_page: Open, server: PageServer) -> None:
    page = open_page()
    call(page)
    for _ in range(2):
        page.get_by_test_id("record").click()
        page.wait_for_timeout(300)
        page.get_by_test_id("record").click()
    for left in (1, 0):
        page.get_by_role("button", name="Delete Take").first.click()
        expect(page.get_by_test_id("download")).to_have_count(left)
        focused = page.get_by_role("button", name="Delete Take 1") if left else page.get_by_test_id("stop")
        expect(focused).to_be_focused()
    page.get_by_test_id("mute").focus()
    server.end("time_limit")
    expect(page.get_by_role("alert")).to_contain_text("It reached the longest time that this server allows.")
    expect(page.get_by_test_id("start")).to_be_focused()
    page.get_by_role("button", name="Dismiss this message").click()
    expect(page.get_by_test_id("start")).to_be_focused()


def test_a_full_server_is_tried_again_after_the_time_that_it_names(open_page: Open, server: PageServer) -> None:
    server.refusals.append({"code": "at_capacity", "message": "8 calls are running", "retry_after_s": 1})
    page = open_page()
    seen = notices(page)
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_text(LIVE)
    assert seen() == ["All places are taken"]
    assert len(server.said("start")) == 2


@pytest.mark.parametrize(
    ("code", "title"),
    [("system_busy", "The server is busy"), ("internal_error", "Something failed on the server")],
)
def test_a_failure_of_the_server_passes(open_page: Open, server: PageServer, code: str, title: str) -> None:
    page = open_page()
    call(page)
    server.refusals.append({"code": code, "message": "the encoder does not answer", "retry_after_s": 1})
    seen = notices(page)
    server.hang_up()
    while len(server.said("start")) < 3:
        page.wait_for_timeout(50)
    expect(page.get_by_test_id("status")).to_have_text(LIVE)
    assert seen() == ["Connection lost", title]
    expect(page.get_by_test_id("notice")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "title"), [("system_busy", "The server is busy"), ("at_capacity", "All places are taken")]
)
def test_a_socket_that_is_refused_is_explained(open_page: Open, server: PageServer, status: str, title: str) -> None:
    page = open_page()
    server.greets.clear()
    server.config_refusal = {"status": status, "message": "the encoder does not answer"}
    seen = notices(page)
    page.get_by_test_id("start").click()
    page.wait_for_timeout(300)
    server.hang_up()
    expect(page.get_by_role("alert")).to_contain_text(title)
    server.config_refusal = None
    server.greets.set()
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_test_id("status")).to_have_text(LIVE)
    assert seen() == [title]


@pytest.mark.parametrize(
    ("reason", "title"),
    [("media_failed", "Connection lost"), ("internal_error", "Something failed on the server")],
)
def test_a_call_that_the_server_ends_goes_on(open_page: Open, server: PageServer, reason: str, title: str) -> None:
    page = open_page()
    call(page)
    seen = notices(page)
    server.end(reason)
    while len(server.said("start")) < 2:
        page.wait_for_timeout(50)
    expect(page.get_by_test_id("status")).to_have_text(LIVE)
    assert seen() == [title]


def test_a_slow_answer_is_waited_for_and_not_taken_for_a_firewall(open_page: Open, server: PageServer) -> None:
    page = open_page()
    page.clock.install()
    server.answers.clear()
    seen = notices(page)
    page.get_by_test_id("start").click()
    while not server.said("start"):
        page.wait_for_timeout(50)
    page.clock.fast_forward(29000)
    expect(page.get_by_test_id("status")).to_have_text("Connecting")
    page.clock.fast_forward(2000)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    server.answers.set()
    page.clock.resume()
    expect(page.get_by_test_id("status")).to_have_text(LIVE)
    assert seen() == ["The server does not answer"]


def test_waiting_for_a_place_can_be_cut_short_and_stopped(open_page: Open, server: PageServer) -> None:
    full = {"code": "at_capacity", "message": "8 calls are running", "retry_after_s": 600}
    server.refusals += [full, full]
    page = open_page()
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("countdown")).to_have_text(re.compile(r"^[56]\d\d s$"))
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_test_id("countdown")).to_have_text(re.compile(r"^[56]\d\d s$"))
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("status")).to_have_text("Ready")
    assert len(server.said("start")) == 2


@pytest.mark.parametrize(
    ("code", "title", "text"),
    [
        ("voice_not_found", "That voice is gone", "Choose another one"),
        ("invalid_message", "The server refused that", "steps: 77 is too many"),
    ],
)
def test_a_refused_call_says_why(open_page: Open, server: PageServer, code: str, title: str, text: str) -> None:
    server.refusals.append({"code": code, "message": "steps: 77 is too many"})
    page = open_page()
    page.get_by_test_id("start").click()
    expect(page.get_by_role("alert")).to_contain_text(title)
    expect(page.get_by_role("alert")).to_contain_text(text)
    expect(page.get_by_test_id("status")).to_have_text("Ready")


def test_a_server_that_went_away_is_told_apart_from_a_lost_connection(open_page: Open, server: PageServer) -> None:
    page = open_page()
    call(page)
    server.close()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.get_by_test_id("status")).to_have_text(re.compile(r"^Reconnecting, try \d of 8$"))
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("notice")).to_be_hidden()
    page.get_by_test_id("start").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


@pytest.mark.parametrize(
    ("script", "title"),
    [
        ("delete window.RTCPeerConnection", "This browser cannot make calls"),
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotReadableError') }",
            "in use",
        ),
    ],
)
def test_what_this_browser_never_does_by_itself(open_page: Open, script: str, title: str) -> None:
    page = open_page(script=script)
    if page.get_by_test_id("start").is_enabled():
        page.get_by_test_id("start").click()
    expect(page.get_by_role("alert")).to_contain_text(title)
    expect(page.get_by_test_id("stop")).to_be_hidden()


def test_the_microphone_changes_in_mid_call_without_a_gap_and_after_a_failure_too(open_page: Open) -> None:
    page = open_page(script=REPLACING)
    call(page)
    page.get_by_text("Noise suppression").click()
    expect(page.get_by_role("alert")).to_contain_text("The browser says: not now")
    expect(page.get_by_test_id("status")).to_have_text("Ready")
    call(page)
    for number, name in enumerate(("Noise suppression", "Echo cancellation"), start=2):
        page.get_by_text(name).click()
        while page.evaluate("replaced.length") < number:
            page.wait_for_timeout(50)
    while page.evaluate(STATES) != [*["ended"] * 4, "live"]:
        page.wait_for_timeout(50)
    assert page.evaluate("replaced") == ["live", "live", "live"]  # the track before was still heard
    expect(page.get_by_test_id("level-in")).to_have_text("good")
    page.get_by_test_id("stop").click()
    assert page.evaluate(STATES) == ["ended"] * 5


REPLACING = """
  window.opened = []; // microphones
  window.replaced = []; // states of those that another took the place of; the first time it fails
  const getUserMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wishes) => {
    const stream = await getUserMedia(wishes);
    opened.push(...stream.getTracks());
    return stream;
  };
  const { replaceTrack } = RTCRtpSender.prototype;
  RTCRtpSender.prototype.replaceTrack = async function (track) {
    if (replaced.push(this.track.readyState) === 1) throw new Error("not now");
    return replaceTrack.call(this, track);
  };
"""


def test_a_page_without_the_right_to_a_microphone_says_what_helps_and_takes_voices(
    open_page: Open, server: PageServer, microphone: Path
) -> None:
    page = open_page(f"http://{ELSEWHERE}:{server.port}/")
    for words in (f"https://{ELSEWHERE}:{server.port}", f"http://localhost:{server.port}", "seedvc serve --lan"):
        expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_test_id("start")).to_be_disabled()
    page.get_by_test_id("add-voice").click()
    page.get_by_test_id("reference-record").click()
    expect(page.get_by_test_id("add-problem")).to_contain_text("https://")
    page.get_by_test_id("add-name").fill("Grandmother")
    page.get_by_test_id("add-files").set_input_files(microphone)
    page.get_by_test_id("add-agree").check()
    page.get_by_test_id("add-save").click()
    expect(page.get_by_role("radio", name="Grandmother")).to_be_checked()


def test_a_voice_is_added_from_a_file_and_deleted(open_page: Open, server: PageServer, microphone: Path) -> None:
    page = open_page()
    page.get_by_test_id("add-voice").click()
    page.get_by_test_id("add-save").click()
    expect(page.get_by_test_id("add-problem")).to_have_text("Give the voice a name.")
    page.get_by_test_id("add-name").fill("Grandmother")
    page.get_by_test_id("add-files").set_input_files(microphone)
    page.get_by_test_id("add-save").click()
    expect(page.get_by_test_id("add-problem")).to_have_text("The speaker has to agree first.")
    page.get_by_test_id("add-agree").check()
    page.get_by_test_id("add-save").click()
    expect(page.get_by_role("radio", name="Grandmother")).to_be_checked()
    assert server.said("upload") == [{"type": "upload", "name": "Grandmother", "sizes": [microphone.stat().st_size]}]
    assert [told["value"] for told in server.said("consent")] == ["The speaker agreed that this voice is used."]
    expect(page.get_by_test_id("voice-delete")).to_have_count(1)  # the premade ones have none
    page.get_by_role("button", name="Delete Grandmother").click()
    page.get_by_test_id("remove-confirm").click()
    expect(page.get_by_test_id("voice")).to_have_count(2)
    expect(page.get_by_role("radio", name="Clara")).to_be_checked()


def test_how_good_a_reference_is_stays_on_the_page(open_page: Open, server: PageServer, microphone: Path) -> None:
    advice = "4.1 s of speech found; 10 s or more sound better"
    server.reference = {"speech_s": 4.1, "advice": [advice]}
    page = open_page()

    def add(name: str) -> None:
        page.get_by_test_id("add-voice").click()
        expect(page.get_by_test_id("reference")).to_have_text("")
        page.get_by_test_id("add-name").fill(name)
        page.get_by_test_id("add-files").set_input_files(microphone)
        page.get_by_test_id("add-agree").check()

    add("Grandmother")
    page.get_by_test_id("add-clean").check()
    page.get_by_test_id("add-save").click()
    expect(page.get_by_test_id("reference")).to_have_text(f"Grandmother: {advice}.")
    assert server.said("clean") == [{"type": "clean", "value": "true"}]
    server.reference = {"speech_s": 12.04, "advice": []}
    add("Uncle")
    page.get_by_test_id("add-save").click()
    expect(page.get_by_test_id("reference")).to_have_text("Uncle: A good recording, 12.0 s of speech.")
    server.reference = None
    add("Aunt")
    page.get_by_test_id("add-save").click()
    expect(page.get_by_role("radio", name="Aunt")).to_be_checked()
    expect(page.get_by_test_id("reference")).to_have_text("")
    assert len(server.said("clean")) == 1


def test_a_voice_recorded_with_the_microphone(open_page: Open, server: PageServer) -> None:
    page = open_page()
    page.get_by_test_id("add-voice").click()
    page.get_by_test_id("add-name").fill("Me")
    page.get_by_test_id("add-agree").check()
    page.get_by_test_id("reference-record").click()
    expect(page.get_by_test_id("reference-time")).to_have_text(re.compile("^0:0[1-4]"))
    page.get_by_test_id("reference-record").click()
    expect(page.get_by_test_id("add-problem")).to_contain_text("at least 5 s")
    page.get_by_test_id("reference-record").click()
    expect(page.get_by_test_id("reference-time")).to_have_text(re.compile("^0:(0[5-9]|1.)"))
    page.get_by_test_id("reference-record").click()
    page.get_by_test_id("add-save").click()
    expect(page.get_by_role("radio", name="Me")).to_be_checked()
    assert server.said("upload")[0]["sizes"][0] >= 2 * 5 * 48000


def test_a_microphone_that_opens_behind_a_closed_sheet_is_shut_again(open_page: Open) -> None:
    """And one press too many opens no second one."""
    page = open_page(script=ASKING)
    page.get_by_test_id("add-voice").click()
    page.get_by_test_id("reference-record").dblclick()
    page.keyboard.press("Escape")
    page.evaluate("answer()")
    while page.evaluate(STATES) != ["ended"]:
        page.wait_for_timeout(50)
    page.get_by_test_id("add-voice").click()
    expect(page.get_by_test_id("reference-record")).to_have_text("Record")
    page.get_by_test_id("reference-record").dblclick()
    page.evaluate("answer()")
    expect(page.get_by_test_id("reference-record")).to_have_text("Stop")
    assert page.evaluate(STATES) == ["ended", "live"]
    page.keyboard.press("Escape")
    while page.evaluate(STATES) != ["ended", "ended"]:
        page.wait_for_timeout(50)


STATES = "opened.map((track) => track.readyState)"
ASKING = """
  window.opened = []; // microphones, when `answer` allows them
  const asked = [];
  window.answer = () => asked.splice(0).forEach((allow) => allow());
  const getUserMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wishes) => {
    await new Promise((resolve) => asked.push(resolve));
    const stream = await getUserMedia(wishes);
    opened.push(...stream.getTracks());
    return stream;
  };
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_use_it(open_page: Open, server: PageServer, scheme: str) -> None:
    """Each control has a name, text stands out from what is behind it, and nothing is wider than a phone."""
    server.voices.append(voice("own", "Grandmother Wilhelmina-Charlotte", own=True))
    page = open_page(color_scheme=scheme, viewport={"width": 360, "height": 740})
    call(page)
    expect(page.get_by_test_id("delay")).not_to_have_text("–")
    assert nameless_controls(page) == []
    assert page.evaluate(FAINT_TEXT) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_test_id("add-voice").click()
    assert nameless_controls(page) == []
    assert page.evaluate(FAINT_TEXT) == []
    page.keyboard.press("Escape")
    page.get_by_test_id("view-recordings").click()
    name = "an interview with a very long name indeed.wav"
    page.get_by_test_id("choose-files").set_input_files({"name": name, "mimeType": "audio/wav", "buffer": b"RIFF"})
    page.get_by_test_id("convert").click()
    expect(page.get_by_test_id("recording")).to_have_attribute("data-state", "failed")
    assert nameless_controls(page) == []
    assert page.evaluate(FAINT_TEXT) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_what_is_chosen_is_marked_where_the_system_sets_the_colours(open_page: Open) -> None:
    page = open_page(forced_colors="active")
    call(page)
    marked = "(input) => { const s = getComputedStyle(input.nextElementSibling); return s.outlineStyle === 'solid'; }"
    for radio in page.locator('.choices input[name="mode"]').all():
        assert radio.evaluate(marked) == radio.is_checked()
    width = "(key) => getComputedStyle(key).borderTopWidth"
    assert [key.evaluate(width) for key in page.locator(".voice-key").all()] == ["3px", "1px"]


def test_a_control_is_called_what_it_says(open_page: Open) -> None:
    """Those who steer by voice say what they see."""
    page = open_page()
    expect(page.get_by_test_id("bypass")).to_have_accessible_name("Bypass: A Clara B Own voice")
    assert page.get_by_test_id("key-value").get_attribute("type") == "password"


def nameless_controls(page: Page) -> list[str]:
    """Roles of controls that a screen reader cannot name."""
    controls = {"button", "link", "textbox", "radio", "checkbox", "switch", "combobox", "slider", "meter"}
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    nodes = [node for node in tree["nodes"] if node.get("role", {}).get("value") in controls]
    assert len(nodes) > 5
    return [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")]


FAINT_TEXT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colour, under) => {
    canvas.fillStyle = `rgb(${under.join(" ")})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const behind = (element) =>
    element ? over(getComputedStyle(element).backgroundColor, behind(element.parentElement)) : [255, 255, 255];
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest("button:disabled, option, noscript, script")) continue;
    const ground = behind(element);
    const [a, b] = [light(over(getComputedStyle(element).color, ground)), light(ground)];
    const contrast = Math.max(a, b) / Math.min(a, b);
    if (contrast < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


def test_the_delay_is_found_in_the_loudness_of_both_sides(open_page: Open) -> None:
    page = open_page()
    found = page.evaluate("""async () => {
      const { DelayMeter } = await import("/delay.js");
      const stepS = 256 / 48000;
      const speech = (t) => Math.abs(Math.sin(9 * t) * Math.sin(2.3 * t + Math.sin(t))) ** 2;
      const other = (t) => Math.abs(Math.sin(7.1 * t + 3) * Math.sin(1.7 * t)) ** 2;
      const measured = (returned) => {
        const meter = new DelayMeter(stepS);
        for (let i = 0; i < 1500; i += 1) meter.push([[speech(i * stepS)], [returned(i * stepS)]]);
        return meter.measure();
      };
      return [measured((t) => 0.4 * speech(t - 0.3)), measured(other), measured(() => 0)];
    }""")
    assert found[0] == pytest.approx(300, abs=3)
    assert found[1:] == [None, None]


def test_waits_between_tries_double_up_to_a_bound(open_page: Open) -> None:
    waits = open_page().evaluate("""async () => {
      const { waitBefore } = await import("/dialer.js");
      return [0, 1, 2, 3, 4, 9].map((tries) => waitBefore(tries, 0)).concat(waitBefore(9, 1));
    }""")
    assert waits == [0.5, 1, 2, 4, 8, 8, 10]


@pytest.mark.parametrize(
    ("flags", "title"),
    [([], "No microphone found"), (["--use-fake-device-for-media-stream"], "The microphone is blocked")],
)
def test_a_browser_without_a_microphone_or_without_leave_to_use_it(
    playwright: Playwright, browser: Browser, server: PageServer, flags: list[str], title: str
) -> None:
    """Where nobody answers its question, a headless browser takes that for a no."""
    browser.close()  # one at a time; no test after this one needs it
    plain = playwright.chromium.launch(executable_path=chromium(), args=[*FLAGS, *flags])
    page = plain.new_page()
    page.goto(server.url)
    page.get_by_test_id("start").click()
    expect(page.get_by_role("alert")).to_contain_text(title)
    expect(page.get_by_test_id("status")).to_have_text("Ready")
    plain.close()

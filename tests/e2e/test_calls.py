"""Through the real graph: calls of a browser, over a relay, of other clients, of our own; recordings from the page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import soxr
from playwright.sync_api import expect

from benchmarks import delays
from benchmarks.browser import chromium
from benchmarks.judges import speaker_similarity
from configs.schema import load_preset
from serve_app.commands.soundcard import WavFile
from stages.settings import delay_ms
from tests.e2e.browser import RECORDED_RATE, Tab, open_tab
from tests.e2e.firefox import firefox
from tests.e2e.presets import unhurried_preset
from tests.e2e.turn import TurnServer, running_coturn
from tests.e2e.whip import publishing
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
SOURCE = "bakery"
VOICE, OTHER_VOICE = "clara", "vera"
TURN_SECRET = "only-for-tests"
CONNECT_TIMEOUT_MS = 20000
HANG_UP_TIMEOUT_S = 10.0
SPEECH_S = 8.0
WORDS_S = 12.0
"""Long enough that some words are found again, though tiny swallows others."""
LEAST_SPEECH_S = 3.0
"""Of a sentence of six seconds."""
AROUND_MS = 400
"""From mouth to ear beyond the conversion, at most: Opus, buffers, the browser, a machine that has more to do."""
LOUDEST_CLICK = 2.0
"""Energy above 9 kHz in 5 ms, over what speech itself has."""
BYPASS_S = 3.0

pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.timeout(240)]
Report = Callable[[str, object], None]


FINDERS: Mapping[str, Callable[[str], str | None]] = {"chromium": lambda _: chromium(), "firefox": lambda _: firefox()}
"""Programs that have other names elsewhere."""


def requires(*programs: str) -> pytest.MarkDecorator:
    """Leaves a test out where one of its programs is not installed, and says which."""
    missing = [name for name in programs if FINDERS.get(name, shutil.which)(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (see `make test-programs`)")


@dataclass(frozen=True)
class Served:
    """The running graph, and the relay that its clients are told of."""

    url: str
    turn: TurnServer | None
    delay_ms: int
    """What it says that the conversion adds."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """configs/local.yaml in a process of its own, with coturn for its clients where that is installed."""
    folder = tmp_path_factory.mktemp("graph")
    with ExitStack() as stack:
        turn = None
        if shutil.which("turnserver") is not None:
            turn = stack.enter_context(running_coturn(folder, TURN_SECRET))
        rtc = {"ice_servers": [{"urls": turn.urls}]} if turn else {}
        preset = str(unhurried_preset(folder))
        args = {"rtc": rtc, "preset": preset}
        url = stack.enter_context(running_graph_process(folder, args))
        # The first use of a voice makes its features, which are kept: not part of what is tested here.
        for voice in (VOICE, OTHER_VOICE):
            files = {"audio": source_file().read_bytes()}
            answer = httpx.post(f"{url}/v1/speech-to-speech/{voice}?live=true", files=files, timeout=60.0)
            assert answer.status_code == 200, answer.text
        yield Served(url, turn, delay_ms(load_preset(preset).live, "lowest"))


@contextmanager
def running_graph_process(folder: Path, args: Mapping[str, object]) -> Iterator[str]:
    """The address of a graph that lives as long as the block runs."""
    log = folder / "graph.log"
    environment = os.environ | {"SEEDVC_TURN_SECRET": TURN_SECRET}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.graph", json.dumps(args)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            lines = iter(process.stdout.readline, b"")
            url = next((line.decode().strip() for line in lines if line.startswith(b"http")), None)
            assert url is not None, f"the graph did not start: {log.read_text(errors='replace')[-3000:]}"
            yield url
        finally:
            process.stdin.close()
            process.wait(60)
            process.stdout.close()


def source_file() -> Path:
    return SAMPLES / "sources" / f"{SOURCE}.flac"


def voice_sound(voice: str) -> Samples:
    return at_48k(SAMPLES / "voices" / f"{voice}.flac")


def at_48k(path: Path) -> Samples:
    samples, rate = decode_file(path)
    return np.asarray(soxr.resample(samples, rate, RECORDED_RATE), np.float32)


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real speech, three times the same sentence, as a WAV file at 48 kHz."""
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    sentence = np.concatenate((at_48k(source_file()), np.zeros(RECORDED_RATE // 4, np.float32)))
    with WavFile(path) as file:
        file.write(np.tile(sentence, 3))
    return path


def check_voice(heard: Samples, voice: str, report: Report) -> None:
    """The sound is speech, and of the target rather than of the source."""
    assert loud_s(heard) > LEAST_SPEECH_S, f"only {loud_s(heard):.1f} s of sound came back"
    to_target = speaker_similarity(heard, RECORDED_RATE, voice_sound(voice), RECORDED_RATE)
    to_source = speaker_similarity(heard, RECORDED_RATE, at_48k(source_file()), RECORDED_RATE)
    report("similarity", {"target": round(to_target, 3), "source": round(to_source, 3)})
    assert to_target > to_source, f"nearer to its source ({to_source:.2f}) than to {voice} ({to_target:.2f})"


def loud_s(sound: Samples) -> float:
    """Seconds above -40 dB."""
    frames = sound[: len(sound) // 960 * 960].reshape(-1, 960)
    return float((np.sqrt((frames**2).mean(axis=1)) > 0.01).sum()) * 0.02


def check_delay(said: Samples, heard: Samples, served: Served, report: Report) -> None:
    """The words come again, and about when the server says; loosely, since a loaded machine is late."""
    latest_ms = served.delay_ms + AROUND_MS
    found = delays.spread(delays.of_words(said, heard, latest_ms / 1000 + 0.5))
    report("delay_ms", found)
    assert found["p50_ms"] is not None, "no word was found again in what was heard"
    assert found["p50_ms"] < latest_ms, f"the words came {found['p50_ms']:.0f} ms late; {latest_ms} ms are allowed"


@contextmanager
def page_call(
    served: Served, microphone: Path, *, browser: str = "chromium", relay_only: bool = False
) -> Iterator[Tab]:
    """A call started and ended on the page as a person does; the page must not complain, and the server forget it."""
    with open_tab(served.url, microphone, browser=browser, relay_only=relay_only) as tab:
        choose(tab, VOICE)
        tab.page.get_by_test_id("start").click()
        expect(tab.page.get_by_test_id("status")).to_have_attribute("data-state", "live", timeout=CONNECT_TIMEOUT_MS)
        yield tab
        tab.page.get_by_test_id("stop").click()
        expect(tab.page.get_by_test_id("status")).to_have_attribute("data-state", "idle")
        assert tab.complaints == []
        session = f"{served.url}/v1/rtc/sessions/{tab.page.evaluate('recorder.session')}"
        ended_by = time.monotonic() + HANG_UP_TIMEOUT_S
        while httpx.get(session).status_code != 404:
            assert time.monotonic() < ended_by, "the server still holds the call"
            time.sleep(0.1)


def choose(tab: Tab, voice: str) -> None:
    """Picks a voice of the page's list."""
    tab.page.locator(f'[data-voice-id="{voice}"] label').click()


@pytest.mark.parametrize(
    "browser",
    [
        pytest.param("chromium", marks=requires("chromium")),
        pytest.param("firefox", marks=requires("firefox", "pulseaudio", "paplay", "pactl")),
    ],
)
def test_a_call_from_the_page_is_heard_in_the_chosen_voice_and_then_in_ones_own(
    served: Served, microphone: Path, browser: str, record_property: Report
) -> None:
    with page_call(served, microphone, browser=browser) as tab:
        tab.page.wait_for_timeout(WORDS_S * 1000)
        said, heard = tab.sound(0), tab.sound(1)
        assert tab.route()["local"]["candidateType"] != "relay"
        tab.page.get_by_test_id("bypass").click()
        tab.page.wait_for_timeout(BYPASS_S * 1000)
        bypassed = tab.sound(1)[len(heard) + RECORDED_RATE :]
        blocks = int(tab.page.get_by_test_id("blocks-done").inner_text())
    assert blocks > 0
    check_delay(said, heard, served, record_property)
    check_voice(heard, VOICE, record_property)
    own = speaker_similarity(bypassed, RECORDED_RATE, at_48k(source_file()), RECORDED_RATE)
    other = speaker_similarity(bypassed, RECORDED_RATE, voice_sound(VOICE), RECORDED_RATE)
    record_property("bypassed", {"own": round(own, 3), "other": round(other, 3)})
    assert own > other, f"bypassed, and yet nearer to {VOICE} ({other:.2f}) than to its source ({own:.2f})"


@requires("chromium", "turnserver")
def test_a_call_through_a_relay_alone(served: Served, microphone: Path, record_property: Report) -> None:
    with page_call(served, microphone, relay_only=True) as tab:
        tab.page.wait_for_timeout(WORDS_S * 1000)
        assert tab.route()["local"]["candidateType"] == "relay"
        check_delay(tab.sound(0), tab.sound(1), served, record_property)
        check_voice(tab.sound(1), VOICE, record_property)
    assert served.turn is not None
    assert "CHANNEL_BIND processed, success" in served.turn.log.read_text(errors="replace")


@requires("chromium")
def test_the_voice_changes_in_mid_call_without_a_click(
    served: Served, microphone: Path, record_property: Report
) -> None:
    with page_call(served, microphone) as tab:
        tab.page.wait_for_timeout(6500)
        changed = len(tab.sound(1))
        choose(tab, OTHER_VOICE)
        tab.page.wait_for_timeout(6500)
        heard = tab.sound(1)
    first, second = heard[:changed], heard[changed + RECORDED_RATE :]
    wanted, other = voice_sound(VOICE), voice_sound(OTHER_VOICE)
    for name, part, near, far in (("first", first, wanted, other), ("second", second, other, wanted)):
        to_near, to_far = (speaker_similarity(part, RECORDED_RATE, v, RECORDED_RATE) for v in (near, far))
        record_property(name, {"own": round(to_near, 3), "other": round(to_far, 3)})
        assert to_near > to_far, (
            f"the {name} half is nearer to the other voice ({to_far:.2f}) than to its ({to_near:.2f})"
        )
    around = slice(changed - RECORDED_RATE // 2, changed + 2 * RECORDED_RATE)
    speech = np.concatenate((heard[: around.start], heard[around.stop :]))
    click = float(hiss(heard[around]).max() / hiss(speech).max())
    record_property("click", round(click, 2))
    assert click < LOUDEST_CLICK


def hiss(sound: Samples) -> Samples:
    """Energy above 9 kHz in each 5 ms: speech has little there, a click much."""
    frames = sound[: len(sound) // 240 * 240].reshape(-1, 240) * np.hanning(240).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(frames, axis=1))
    return np.asarray((spectrum[:, 45:] ** 2).sum(axis=1), np.float32)


# A WHEP player of a few lines: the browser is the third-party listener.
LISTEN = """async (endpoint) => {
  const peer = new RTCPeerConnection();
  peer.addTransceiver('audio', { direction: 'recvonly' });
  const player = new Audio();
  peer.ontrack = ({ track }) => { player.srcObject = new MediaStream([track]); player.muted = true; player.play(); };
  await peer.setLocalDescription();
  while (peer.iceGatheringState !== 'complete') await new Promise((resolve) => setTimeout(resolve, 20));
  const headers = { 'Content-Type': 'application/sdp' };
  const answer = await fetch(endpoint, { method: 'POST', headers, body: peer.localDescription.sdp });
  if (answer.status !== 201) throw new Error(`${answer.status} ${await answer.text()}`);
  await peer.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
  return answer.headers.get('Location');
}"""


@requires("chromium", "whip-client", "gcc")
def test_another_whip_client_is_heard_by_another_whep_client(
    served: Served, microphone: Path, tmp_path: Path, record_property: Report
) -> None:
    with open_tab(served.url, microphone) as tab:
        endpoint = f"{served.url}/v1/rtc/whip?voice={VOICE}"
        with publishing(microphone, endpoint, tmp_path) as publisher:
            session = publisher.session_url().rpartition("/")[2]
            listener = tab.page.evaluate(LISTEN, f"{served.url}/v1/rtc/whep/{session}")
            tab.page.wait_for_timeout(SPEECH_S * 1000)
        check_voice(tab.sound(1), VOICE, record_property)
        assert publisher.process.returncode == 0, publisher.log.read_text(errors="replace")[-2000:]
    assert httpx.delete(f"{served.url}{listener}").status_code in (200, 404), "gone with its publisher, or not yet"


def test_seedvc_call_with_files(served: Served, tmp_path: Path, record_property: Report) -> None:
    out = tmp_path / "out.wav"
    command = [sys.executable, "-m", "serve_app.cli", "call", "--server", served.url, "--voice", VOICE.title()]
    done = subprocess.run(
        [*command, "--in", str(source_file()), "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"in a call as {VOICE}" in done.stderr and "mouth to ear" in done.stderr
    said, heard = at_48k(source_file()), at_48k(out)
    check_delay(np.pad(said, (0, max(0, len(heard) - len(said)))), heard, served, record_property)
    check_voice(heard, VOICE, record_property)


@pytest.mark.parametrize(
    "browser",
    [
        pytest.param("chromium", marks=requires("chromium")),
        pytest.param("firefox", marks=requires("firefox", "pulseaudio", "paplay", "pactl")),
    ],
)
def test_recordings_from_the_page(served: Served, microphone: Path, browser: str, record_property: Report) -> None:
    """One converts and is heard before and after at the same place; what is no recording says so."""
    source, rate = decode_file(source_file())
    with open_tab(f"{served.url}/#recordings", microphone, browser=browser) as tab:
        page = tab.page
        page.get_by_role("radio", name=VOICE.title()).check(force=True, timeout=CONNECT_TIMEOUT_MS)
        page.get_by_test_id("choose-files").set_input_files([source_file(), SAMPLES / "pairs.yaml"])
        page.get_by_test_id("convert").click()
        good, bad = page.get_by_test_id("recording").all()
        expect(bad).to_contain_text("This is not a recording", timeout=CONNECT_TIMEOUT_MS)
        expect(good).to_have_attribute("data-state", "done", timeout=3 * CONNECT_TIMEOUT_MS)
        good.get_by_test_id("play").click()
        place_s = 0.0
        for side in ("after", "before"):
            playing = f"({{ paused, currentTime }}) => !paused && currentTime > {place_s + 0.3}"
            page.wait_for_function(f"({playing})(document.getElementById('{side}'))")
            place_s = float(good.get_by_test_id("place").input_value())
            good.get_by_test_id("side").click()
        source_s = len(source) / rate
        assert page.evaluate("document.getElementById('after').duration") == pytest.approx(source_s, abs=0.05)
        save = good.get_by_test_id("save")
        expect(save).to_have_attribute("download", f"{source_file().stem} ({VOICE.title()}).wav")
        if browser == "firefox":  # Playwright lets it save nothing
            return
        with page.expect_download() as download:
            save.click()
        result, result_rate = decode_file(Path(download.value.path()).read_bytes())
    assert len(result) / result_rate == pytest.approx(source_s, abs=0.02)
    heard = np.asarray(soxr.resample(result, result_rate, RECORDED_RATE), np.float32)
    check_voice(heard, VOICE, record_property)

"""`seedvc call`: one sentence for each mistake, and files in the place of microphone and speaker."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from serve_app.cli import main
from serve_app.commands import UserMistake
from serve_app.commands.card_side import CardSide, until_ended
from serve_app.commands.server_call import stats_line
from serve_app.commands.signalling import CallFailed, connected
from serve_app.commands.soundcard import FRAME, RATE, Recording, WavFile, on_timer
from tests.serve_app.fakes import tone, wav_file
from webrtc.caller import CallerStats
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

HELLO = {"type": "hello", "ice_servers": [], "modes": {}, "default_mode": "lowest"}
NOBODY = "http://127.0.0.1:9"


SOURCE = str(Path(__file__).parents[2] / "samples" / "sources" / "station.flac")
FILES = ["--in", SOURCE, "--out", "out.wav"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--in", "nowhere.wav"], "there is no file nowhere.wav"),
        (["--out", "out.mp3"], "--out takes a .wav file; got out.mp3"),
        (["--out", "nowhere/out.wav"], "there is no folder nowhere to write out.wav into"),
        ([*FILES, "--server", "localhost:8000"], "a server is given by its URL, such as http://127.0.0.1:8000"),
        ([*FILES, "--server", NOBODY], f"no server answers at {NOBODY}"),
        ([*FILES, "--local", "--server", NOBODY], "give one of them"),
        ([*FILES, "--preset", "tiny"], "--preset goes with --local"),
        ([*FILES, "--local", "--voice", "nobody"], "'nobody' is neither a recording nor a premade voice; those are: "),
        ([*FILES, "--local", "--preset", "huge"], "'huge'"),
        ([*FILES, "--local", "--block-ms", "130"], "130"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["call", "--voice", "martin", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seedvc: ") and told in line


def test_a_call_needs_a_voice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", *FILES]) == 2
    assert "needs --voice" in capsys.readouterr().err


def test_files_need_no_sound_devices_and_devices_need_their_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for arguments in (["--devices"], ["--voice", "martin"], ["--voice", "martin", "--local", "--in", SOURCE]):
        assert main(["call", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "sound devices need the package sounddevice" in line


def test_a_machine_without_devices_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.commands.devices._devices", lambda kind: [])
    assert main(["call", "--voice", "martin", "--local"]) == 2
    assert "this machine has no microphone; --in takes a recording" in capsys.readouterr().err
    assert main(["call", "--voice", "martin", "--in", SOURCE]) == 2
    assert "this machine has no speaker; --out writes a file" in capsys.readouterr().err


@asynccontextmanager
async def talking(talk: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that says what the test says; its URL."""
    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"http://127.0.0.1:{port}"


def saying(*messages: dict[str, Any]) -> Callable[[ServerConnection], Awaitable[None]]:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(json.dumps(messages[0]))
        if len(messages) > 1:
            await socket.recv()
        for message in messages[1:]:
            await socket.send(json.dumps(message))

    return talk


async def test_a_call_is_started_with_its_settings() -> None:
    async with talking(saying(HELLO, {"type": "ready", "sdp": "v=0"})) as url, connected(url) as signalling:
        assert (await signalling.start("offer", voice="martin"))["sdp"] == "v=0"
        assert [message async for message in signalling.messages()] == [], "ends when the server closes"


async def test_a_refusal_is_told_in_the_servers_words() -> None:
    full = {"type": "error", "code": "at_capacity", "message": "8 calls are running"}
    async with talking(saying(HELLO, full)) as url, connected(url) as signalling:
        with pytest.raises(CallFailed, match="refused the call: 8 calls are running") as refused:
            await signalling.start("offer", voice="martin")
    assert refused.value.code == "at_capacity"


async def test_a_call_carries_the_key_beside_what_a_proxy_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVC_API_KEY", "sesame")
    seen: list[tuple[str | None, str | None]] = []

    async def talk(socket: ServerConnection) -> None:
        assert socket.request is not None
        headers = socket.request.headers
        seen.append((headers.get("xi-api-key"), headers.get("authorization")))
        await socket.send(json.dumps(HELLO))

    async with talking(talk) as url, connected(url.replace("//", "//user:password@")):
        ((key, proxy),) = seen
        assert key == "sesame" and proxy is not None and proxy.startswith("Basic ")


async def test_another_kind_of_server_is_told_apart() -> None:
    async def silent(socket: ServerConnection) -> None:
        await socket.close()

    async with talking(silent) as url:
        with pytest.raises(UserMistake, match="is not a seedvc server: it does not say hello"):
            async with connected(url):
                pass


def test_a_recording_is_heard_in_frames_then_silence(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav_file(tone(0.5), 22050))
    recording, frames = Recording(path), list[Samples]()
    while not recording.ended:
        frames.append(recording.frame())
    assert all(frame.shape == (FRAME,) for frame in frames)
    assert len(frames) == 26, "25 frames and the one that says that it is over"
    assert np.abs(np.concatenate(frames[2:23])).max() > 0.1 and not frames[-1].any()


def test_what_is_heard_is_written_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    sound = np.linspace(-1.2, 1.2, 5 * FRAME, dtype=np.float32)
    with WavFile(path) as file:
        for frame in sound.reshape(-1, FRAME):
            file.write(frame)
    samples, rate = decode_file(path)
    assert rate == RATE
    np.testing.assert_allclose(samples, np.clip(sound, -1, 1), atol=1e-4)


async def test_the_timer_tells_a_clock_without_jitter() -> None:
    told = list[float]()

    def exchange(captured: Samples, now_s: float) -> Samples:
        told.append(now_s)
        return captured

    card = asyncio.create_task(on_timer(exchange))
    while len(told) < 5:  # noqa: ASYNC110 - the card has no event to wait for
        await asyncio.sleep(0.01)
    card.cancel()
    np.testing.assert_allclose(np.diff(told), FRAME / RATE, atol=1e-9)


class Deaf:
    """A far end that fails where it is asked for sound."""

    def hear(self, now_s: float) -> Samples:
        raise ZeroDivisionError("inside")

    def say(self, frame: Samples) -> None:
        """Hears nothing."""


async def test_a_sound_card_that_fails_ends_the_call() -> None:
    ended = asyncio.get_running_loop().create_future()
    card_side = CardSide(None, None, ended)
    card_side.connect(Deaf(), 0.5)
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(10):
            await until_ended(ended, on_timer(card_side))


def test_the_figures_stand_on_one_line_before_the_first_report_too() -> None:
    nothing = CallerStats(None, 0.0, 0.0, 0.0, 30.0, 0.0, 0, 0, 0, 0)
    blocks = {"done": 1, "late": 2, "dropped": 3, "skipped": 4}
    server = {"mouth_to_ear_ms": 310.4, "jitter_buffer_ms": None, "stages_ms": {"total": None}, "blocks": blocks}
    line = stats_line(server, nothing)
    assert "mouth to ear about 310 ms, round trip -" in line and "1 done 2 late 3 dropped 4 skipped" in line

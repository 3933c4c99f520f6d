"""A lost call comes back: voice and settings are kept, the sound card goes on, and what cannot come back is told."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.commands import UserMistake
from serve_app.commands.card_side import TAIL_S, CardSide
from serve_app.commands.server_call import LONGEST_WAIT_S, Dialer, wait_before
from serve_app.commands.signalling import CallFailed
from serve_app.commands.soundcard import FRAME, FRAME_S, RATE, Recording, WavFile, on_timer
from stages.geometry import MODEL_RATE
from tests.serve_app.calls.fakes import until
from tests.serve_app.deploy import Deployed, speechlike
from tests.serve_app.fakes import tone, wait_until, wav_file
from tests.serve_app.graph.test_graph import kill_replica
from tests.webrtc.page_server import PageServer
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

ROOT = Path(__file__).parents[2]
SETTINGS = {"voice": "clara", "mode": "constant", "steps": 3, "block_ms": 120, "bypass": True}
LOST = "the connection to the server was lost"


@pytest.fixture
def server() -> Iterator[PageServer]:
    server = PageServer()
    yield server
    server.close()


@asynccontextmanager
async def held(server: PageServer) -> AsyncIterator[tuple[asyncio.Task[None], CardSide]]:
    """A call that has sound, and its sound card."""
    card_side = CardSide(None, None, asyncio.get_running_loop().create_future())
    dialer = Dialer(server.url, dict(SETTINGS))
    tasks = [asyncio.create_task(dialer.hold(card_side)), asyncio.create_task(on_timer(card_side))]
    try:
        await until(lambda: card_side.connected, "the call has sound")
        yield tasks[0], card_side
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, UserMistake):
                await task


async def test_a_lost_call_is_begun_again_as_it_was(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    async with held(server) as (_, card_side):
        for lose in (server.hang_up, lambda: server.end("shutting_down")):
            await asyncio.to_thread(lose)
            await until(lambda: not card_side.connected, "it is lost")
            await until(lambda: card_side.connected, "it is back")
    starts = [{name: start[name] for name in start.keys() - {"sdp", "type"}} for start in server.said("start")]
    assert starts == [SETTINGS, SETTINGS | {"replaces": "s1"}, SETTINGS], "a call that was ended needs no replacing"
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in told if "trying again for up to 1" in line] == [
        LOST,
        "the server ended the call: the server says why",
    ]
    assert sum("in a call as your own voice" in line for line in told) == 3


async def test_a_full_server_is_asked_again_when_it_says_and_a_refusal_for_good_ends_the_call(
    server: PageServer,
) -> None:
    server.refusals = [{"code": "at_capacity", "message": "8 calls are running", "retry_after_s": 0}]
    async with held(server) as (holding, _):
        assert len(server.said("start")) == 2
        server.refusals = [{"code": "voice_not_found", "message": "there is no voice 'clara'"}]
        await asyncio.to_thread(server.hang_up)
        with pytest.raises(CallFailed, match="refused the call: there is no voice 'clara'"):
            await asyncio.wait_for(asyncio.shield(holding), 20)
    assert len(server.said("start")) == 3


async def test_a_call_that_does_not_come_back_is_given_up(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.commands.server_call.GIVE_UP_AFTER_S", 1.0)
    async with held(server) as (holding, _):
        await asyncio.to_thread(server.close)
        with pytest.raises(UserMistake, match="no server answers at .*; the call did not come back within 1 s"):
            await asyncio.wait_for(asyncio.shield(holding), 20)


async def test_a_server_that_falls_silent_counts_as_lost(
    server: PageServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.commands.server_call.SILENT_AFTER_S", 0.1)  # it reports each 0.3 s
    async with held(server):
        await until(lambda: len(server.said("start")) == 2, "silence is noticed")
    assert LOST in capsys.readouterr().err


def test_waits_grow_to_a_bound_and_differ_between_callers() -> None:
    assert all(0.5 * 2**n <= wait_before(n) <= 0.625 * 2**n for n in range(4))
    assert LONGEST_WAIT_S <= wait_before(50) <= 1.25 * LONGEST_WAIT_S
    assert 5 <= wait_before(0, 5) <= 6.25
    assert len({wait_before(0) for _ in range(5)}) > 1


class Ear:
    """A far end that keeps what is said, and says its name."""

    def __init__(self, name: float) -> None:
        self.said: list[Samples] = []
        self._name = np.full(FRAME, name, np.float32)

    def say(self, frame: Samples) -> None:
        self.said.append(frame)

    def hear(self, now_s: float) -> Samples:
        return self._name


async def test_a_recording_goes_on_while_the_far_end_is_away(tmp_path: Path) -> None:
    source, out = tmp_path / "source.wav", tmp_path / "out.wav"
    source.write_bytes(wav_file(np.repeat(np.arange(50) / 100, FRAME), RATE))
    ended = asyncio.get_running_loop().create_future()
    first, second = Ear(0.25), Ear(0.5)
    with WavFile(out) as file:
        card_side = CardSide(Recording(source), file, ended)

        def pass_by(n_frames: int) -> None:
            for _ in range(n_frames):
                card_side(np.zeros(FRAME, np.float32), 0.0)

        pass_by(5)  # nothing is said before somebody hears it
        card_side.connect(first, 0.0)
        pass_by(10)
        card_side.disconnect()
        pass_by(20)
        card_side.connect(second, 0.0)
        pass_by(20 + round(TAIL_S / FRAME_S))
        await asyncio.wait_for(ended, 10)
    heard = [np.rint(frame.mean() * 100) for ear in (first, second) for frame in ear.said]
    assert heard[:30] == [*range(10), *range(30, 50)]
    samples, _ = decode_file(out)
    assert np.rint(samples[::FRAME] * 100)[:35].tolist() == [25] * 10 + [0] * 20 + [50] * 5


async def test_a_recording_that_ends_while_the_far_end_is_away_is_told(tmp_path: Path) -> None:
    source = tmp_path / "source.wav"
    source.write_bytes(wav_file(tone(0.1, RATE), RATE))
    ended = asyncio.get_running_loop().create_future()
    card_side = CardSide(Recording(source), None, ended)
    card_side.connect(Ear(0.0), 0.0)
    card_side.disconnect()
    for _ in range(60):
        card_side(np.zeros(FRAME, np.float32), 0.0)
    with pytest.raises(UserMistake, match="the recording ended while the connection was lost"):
        await asyncio.wait_for(ended, 10)


def loud_at(path: Path) -> Any:
    """Which frames of a WAV file that still grows are loud."""
    samples = np.frombuffer(path.read_bytes()[44:][: (path.stat().st_size - 44) // 2 * 2], "<i2")
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return np.abs(frames).max(axis=1, initial=0) > 300


@pytest.mark.e2e
@pytest.mark.ray
def test_a_call_is_heard_again_when_its_replica_has_died(graph: Deployed, tmp_path: Path) -> None:
    source, out, log = tmp_path / "source.wav", tmp_path / "out.wav", tmp_path / "log"
    source.write_bytes(wav_file(speechlike(120.0, 3), MODEL_RATE))
    command = [sys.executable, "-m", "serve_app.cli", "call", "--server", graph.http_url, "--voice", graph.voice_id]
    command += ["--bypass", "--mode", "constant", "--in", str(source), "--out", str(out)]
    with log.open("wb") as errors, subprocess.Popen(command, cwd=ROOT, stderr=errors) as process:
        try:
            wait_until(lambda: out.exists() and loud_at(out).any(), "the call is heard", limit_s=60)
            kill_replica("Ingress")
            wait_until(lambda: log.read_text().count("in a call as") == 2, "the call is back", limit_s=90)
            n_before = len(loud_at(out))
            wait_until(lambda: loud_at(out)[n_before:].any(), "the call is heard again", limit_s=60)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
    headlines = [line for line in log.read_text().splitlines() if line.startswith("in a call as")]
    assert headlines[0] == headlines[1] and "constant" in headlines[0]
    assert log.read_text().count("trying again for up to 120 s") >= 1 and "Traceback" not in log.read_text()
    assert not loud_at(out)[loud_at(out).argmax() : n_before].all(), "there was silence meanwhile"
    wait_until(lambda: httpx.get(f"{graph.http_url}/readyz", timeout=30).status_code == 200, "the graph is whole again")

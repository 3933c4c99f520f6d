"""A voice that is made for one call or conversion is gone afterwards, however the one who made it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from configs.serve import Limits, RtcArgs
from serve_app.calls.rtc import Rtc
from serve_app.cli import main
from serve_app.commands.ending import ended_by_signals
from serve_app.errors import VoiceNotFound
from serve_app.http import create_app
from serve_app.ingress import open_peer
from serve_app.recordings.service import Recordings
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.store import VoiceRecord
from tests.serve_app.calls.fakes import CallRoom
from tests.serve_app.calls.test_rtc import NamedOwners
from tests.serve_app.fakes import EchoBackend, recordings_over, serving, tone, wait_until, wav_file

ROOT = Path(__file__).parents[3]


@dataclass
class Server:
    """A server that takes calls with real media, and what lies behind it."""

    url: str
    room: CallRoom
    service: Recordings

    def own(self) -> list[VoiceRecord]:
        """The voices that somebody has made."""
        return [record for record in self.service.voices.store.list() if record.category == "cloned"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    room = CallRoom(RtcArgs(), make_peer=partial(open_peer, RtcArgs()))
    service = recordings_over(EchoBackend(), FolderVoiceStore(tmp_path / "voices"), Limits())
    monkeypatch.setattr(room.calls, "make_features", service.voices.make_features)
    replicas: dict[str, Rtc] = {}
    rtc = replicas["here"] = Rtc(room.calls, NamedOwners("here", replicas), list, room.args)
    with serving(create_app(service, rtc), ws="websockets-sansio") as url:
        yield Server(url, room, service)


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """What is said and whose voice it is, as one file."""
    path = tmp_path / "me.wav"
    path.write_bytes(wav_file(tone(20.0, 8000), 8000))
    return str(path)


def calling(server: Server, recording: str) -> subprocess.Popen[str]:
    """A `seedvc call` that has got through."""
    command = [sys.executable, "-m", "serve_app.cli", "call", "--voice", recording, "--server", server.url]
    process = subprocess.Popen(
        [*command, "--in", recording, "--out", str(Path(recording).with_name("call.wav"))],
        cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )  # fmt: skip
    wait_until(lambda: server.room.calls.live == 1 or process.poll() is not None, "the call has begun", limit_s=60)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    (record,) = server.own()
    assert record.voice_id in server.room.calls.voices
    return process


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_a_call_that_is_told_to_end_removes_its_voice(server: Server, recording: str, name: str) -> None:
    process = calling(server, recording)
    number = getattr(signal, name)
    for _ in range(2 if name != "SIGINT" else 1):  # a terminal that closes tells its programs more than once
        process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert server.own() == [], told
    hung_up = (0, 130) if name == "SIGINT" else (128 + number,)  # Ctrl-C is the usual way once the call is up
    assert process.returncode in hung_up
    assert "Traceback" not in told


@pytest.mark.e2e
def test_a_call_that_is_killed_leaves_a_voice_that_the_server_forgets(server: Server, recording: str) -> None:
    process = calling(server, recording)
    process.kill()
    process.communicate()
    wait_until(lambda: server.room.calls.live == 0, "the server notices", limit_s=40)
    (record,) = server.own()
    assert record.expires_s is not None and record.expires_s <= 300
    age(server, record, record.expires_s + 1)
    assert server.own() == []
    with pytest.raises(VoiceNotFound):
        server.service.voices.store.get(record.voice_id)


def age(server: Server, record: VoiceRecord, by_s: float) -> None:
    """As if the voice had been used last so long ago."""
    assert isinstance(server.service.voices.store, FolderVoiceStore)
    used_s = time.time() - by_s
    os.utime(server.service.voices.store._voices / record.voice_id / "record.json", (used_s, used_s))


def test_a_conversion_borrows_its_voice_too(server: Server, recording: str, tmp_path: Path) -> None:
    added: list[VoiceRecord] = []
    keep = server.service.voices.store.add

    def add(record: VoiceRecord, samples: np.ndarray, sample_rate: int) -> None:
        added.append(record)
        keep(record, samples, sample_rate)

    server.service.voices.store.add = add  # type: ignore[method-assign]
    out = str(tmp_path / "out.wav")
    assert main(["convert", recording, "--voice", recording, "--out", out, "--server", server.url]) == 0
    assert [record.expires_s is not None for record in added] == [True]
    assert server.own() == []


def borrowed(server: Server, expires_s: int | None = 60, name: str = "x") -> VoiceRecord:
    fields = {"name": name} | ({} if expires_s is None else {"expires_s": str(expires_s)})
    answer = httpx.post(f"{server.url}/v1/voices/add", data=fields, files={"files": wav_file(tone(1.5), 22050)})
    assert answer.status_code == 200, answer.text
    return server.service.voices.store.get(answer.json()["voice_id"])


async def test_a_voice_is_forgotten_when_nothing_uses_it(server: Server) -> None:
    service = server.service
    kept, unused, used, young = borrowed(server, None), borrowed(server), borrowed(server), borrowed(server)
    for record in (kept, unused):
        age(server, record, 61)
    for record in (used, young):
        age(server, record, 59)
    async with service.voices.using(used.voice_id), service.voices.using("never-there"):
        await service.voices.tend([])
    assert {record.voice_id for record in server.own()} == {kept.voice_id, used.voice_id, young.voice_id}
    assert not (service.voices.store._voices / unused.voice_id).exists()  # type: ignore[attr-defined]
    await service.voices.tend([young.voice_id])  # a call has it
    for record in (used, young):  # both were renewed: so much later they are there
        age(server, record, 59)
    assert len(server.own()) == 3
    age(server, used, 61)
    await service.voices.tend([])
    assert used.voice_id not in {record.voice_id for record in server.own()}, "the conversion has let go of it"


async def test_tending_leaves_alone_what_it_cannot_read(server: Server) -> None:
    voices = server.service.voices.store
    assert isinstance(voices, FolderVoiceStore)
    for name, text in (("empty", ""), ("other", '{"more": 1}'), ("list", "[]")):
        (voices._voices / name).mkdir()
        (voices._voices / name / "record.json").write_text(text)
    (voices._voices / "bare").mkdir()
    await server.service.voices.tend([])
    assert len(list(voices._voices.iterdir())) == 4


@pytest.mark.parametrize("expires_s", ["59", "86401", "soon", "-1"])
def test_an_odd_time_is_refused(server: Server, expires_s: str) -> None:
    fields, files = {"name": "x", "expires_s": expires_s}, {"files": wav_file(tone(1.5), 22050)}
    refused = httpx.post(f"{server.url}/v1/voices/add", data=fields, files=files)
    assert refused.status_code == 422 and refused.json()["detail"][0]["loc"] == ["body", "expires_s"]


def test_a_signal_tears_no_task_in_the_middle() -> None:
    steps = []

    async def working() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("whole")
        try:
            await asyncio.sleep(10)
        finally:
            steps.append("undone")

    ray_has = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, ended_by_signals():
            asyncio.run(working())
    finally:
        signal.signal(signal.SIGTERM, ray_has)
    assert ended.value.code == 128 + signal.SIGTERM
    assert steps == ["whole", "undone"]


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    ray_has = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a driver that has started Ray in this process
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(SystemExit) as ended, ended_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        assert ended.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, ray_has)

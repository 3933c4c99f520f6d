"""Keys of several holders: what each sees and may do, over HTTP and in calls, with keys in a file and in Redis."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from configs.serve import Limits, RtcArgs
from serve_app.access import Access
from serve_app.callers import ring
from serve_app.callers.store import KeyStore
from serve_app.callers.stores import checked_keys, open_keys
from serve_app.calls import meter
from serve_app.calls.ice import ice_servers_of
from serve_app.calls.rtc import Rtc
from serve_app.cli import main
from serve_app.http import create_app
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.service import Voices
from tests.serve_app.calls.fakes import CallRoom, audio_offer
from tests.serve_app.calls.test_rtc import NamedOwners, next_of, start
from tests.serve_app.fakes import EchoBackend, recordings_over, tone, wait_until, wav_file

OPERATOR = "sesame"
SPEECH = "/v1/speech-to-speech"
WHIP = "/v1/rtc/whip?voice=martin"
SDP = {"Content-Type": "application/sdp"}


class OwnedRoom(CallRoom):
    """Calls whose voices are those of a store, so that private ones are private in calls too."""

    voices: Voices

    async def make_features(self, voice_id: str, caller: Any = ring.OPERATOR) -> None:
        await self.voices.make_features(voice_id, caller)


@dataclass
class Replica:
    """One ingress replica, and its clients."""

    client: TestClient
    room: CallRoom
    store: KeyStore | None

    def ask(self, key: str, method: str, path: str, **content: Any) -> Any:
        headers = {"xi-api-key": key, **content.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **content)

    def add_voice(self, key: str, name: str = "mine", **fields: str) -> Any:
        files = {"files": wav_file(tone(1.5), 22050)}
        return self.ask(key, "POST", "/v1/voices/add", data={"name": name, **fields}, files=files)

    def voices_of(self, key: str) -> set[str]:
        return {voice["voice_id"] for voice in self.ask(key, "GET", "/v1/voices").json()["voices"]}

    def publish(self, key: str, voice: str = "martin") -> Any:
        path = f"/v1/rtc/whip?voice={voice}"
        return self.ask(key, "POST", path, content=audio_offer("sendonly"), headers=SDP)


@contextmanager
def replica(folder: Path, keys: str | None, *, consent: bool = False, operator: str = OPERATOR) -> Iterator[Replica]:
    """A replica whose voices are in `folder`; several share it as they would on a cluster."""
    store = None if keys is None else checked_keys(keys)
    room = OwnedRoom(RtcArgs(max_calls=8))
    recordings = recordings_over(EchoBackend(), FolderVoiceStore(folder), Limits())
    room.voices = recordings.voices
    rtcs: dict[str, Rtc] = {}
    rtcs["here"] = rtc = Rtc(room.calls, NamedOwners("here", rtcs), lambda: ice_servers_of(room.args), room.args)
    access = Access(operator, keys=store, consent_required=consent)
    with TestClient(create_app(recordings, rtc, access), base_url="http://localhost:8000") as client:
        yield Replica(client, room, store)
        assert client.portal is not None
        for peer in room.peers:
            client.portal.call(peer.close)
        wait_until(lambda: room.calls.live == 0, "no call is left")
        client.portal.call(asyncio.sleep, 0.05)  # the meters of the calls give their places back
        if store is not None:
            client.portal.call(store.close)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks as often as a test has patience."""
    monkeypatch.setattr(ring, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(ring, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(meter, "LOOK_EVERY_S", 0.02)


class RedisServer:
    """A real one on a port of its own, whose data outlast it."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self._folder = f"redis://127.0.0.1:{self.port}/0", folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        options += ["--appendfsync", "always", "--save", ""]
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Redis listens")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where keys are kept."""
    if request.param == "file":
        return str(tmp_path / "keys" / "keys.json")
    server: RedisServer = request.getfixturevalue("redis")
    server.number = getattr(server, "number", 0) + 1  # type: ignore[attr-defined]  # a database for each test
    return f"redis://127.0.0.1:{server.port}/{server.number}"  # type: ignore[attr-defined]


def add_key(capsys: pytest.CaptureFixture[str], place: str, name: str, *limits: str) -> str:
    capsys.readouterr()
    assert main(["keys", "add", name, "--keys", place, *limits]) == 0
    return capsys.readouterr().out.strip()


# --- keys and voices


def test_holders_of_keys_come_in_see_their_own_and_are_sent_away(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ann, bob = add_key(capsys, place, "ann"), add_key(capsys, place, "bob")
    assert main(["keys", "add", "ann", "--keys", place]) == 2
    assert "already" in capsys.readouterr().err
    with replica(tmp_path, place) as one, replica(tmp_path, place) as two:
        shared = one.add_voice(OPERATOR).json()["voice_id"]
        private = one.add_voice(ann).json()["voice_id"]
        assert {shared, private, "martin"} <= two.voices_of(ann) == two.voices_of(OPERATOR)
        assert private not in two.voices_of(bob) and shared in two.voices_of(bob)

        audio = {"files": {"audio": wav_file(tone(1.0), 22050)}}
        for method, path, content in (
            ("GET", f"/v1/voices/{private}", {}),
            ("GET", f"/v1/voices/{private}/settings", {}),
            ("GET", f"/v1/voices/{private}/samples/reference/audio", {}),
            ("POST", f"/v1/voices/{private}/edit", {"files": {"name": (None, "stolen")}}),
            ("DELETE", f"/v1/voices/{private}", {}),
            ("POST", f"{SPEECH}/{private}", audio),
            ("POST", f"{SPEECH}/{private}/stream", audio),
        ):
            refused = two.ask(bob, method, path, **content)
            assert (refused.status_code, refused.json()["detail"]["status"]) == (404, "voice_not_found"), path
        assert two.publish(bob, private).status_code == 404
        assert two.ask(ann, "POST", f"{SPEECH}/{private}", **audio).status_code == 200
        assert two.publish(ann, private).status_code == 201
        assert one.ask(bob, "DELETE", f"/v1/voices/{shared}").status_code == 403
        owned = {voice["voice_id"]: voice["is_owner"] for voice in one.ask(ann, "GET", "/v1/voices").json()["voices"]}
        assert owned[private] and not owned[shared] and not owned["martin"]

        with two.client.websocket_connect(f"ws://localhost:8000/v1/rtc/ws?access_token={ann}") as socket:
            assert start(socket)["type"] == "ready"
            socket.send_json({"type": "change", "voice": private})
            assert next_of(socket, "settings")["voice"] == private
            assert main(["keys", "revoke", "ann", "--keys", place]) == 0
            assert next_of(socket, "end")["reason"] == "key_revoked"
        for replica_ in (one, two):
            refused = replica_.ask(ann, "GET", "/v1/voices")
            assert (refused.status_code, refused.json()["detail"]["status"]) == (401, "invalid_api_key")
        assert two.ask(bob, "DELETE", f"/v1/voices/{private}").status_code == 404
        assert two.ask(OPERATOR, "DELETE", f"/v1/voices/{private}").status_code == 200
    assert main(["keys", "list", "--keys", place]) == 0
    told = capsys.readouterr()
    assert "bob" in told.out and "ann" not in told.out
    logged = caplog.text + told.out + told.err + repr(Access(OPERATOR))
    for secret in (ann, bob, OPERATOR):
        assert secret.rpartition("_")[2] not in logged


def test_a_key_is_not_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "keys.json")
    ann, bob = add_key(capsys, place, "ann"), add_key(capsys, place, "bob")
    kept = Path(place).read_text()
    assert ann not in kept and ann.rpartition("_")[2] not in kept and Path(place).stat().st_mode & 0o777 == 0o600
    digest = open_keys(place)
    with replica(tmp_path, place, operator="") as one:
        assert one.ask(ann, "GET", "/v1/models").status_code == 200
        head, _, tail = ann.rpartition("_")
        for wrong in (
            "",
            head,
            f"{head}_{tail[:-1]}",
            f"{head}_{bob.rpartition('_')[2]}",
            asyncio.run(digest.keys())[0].sha256,
        ):
            assert one.ask(wrong, "GET", "/v1/models").status_code == 401, wrong

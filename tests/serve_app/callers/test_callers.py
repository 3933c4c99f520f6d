"""Keys of several holders: what each sees and may do, over HTTP and in calls, with keys in a file and in Redis."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from time import sleep, time
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketTestSession

from configs.schema import ConfigError
from configs.serve import Limits, RtcArgs, ServeArgs
from serve_app.access import Access
from serve_app.callers import ring
from serve_app.callers.counts import today
from serve_app.callers.store import KeyStore
from serve_app.callers.stores import checked_keys, open_keys
from serve_app.calls import meter
from serve_app.calls.ice import ice_servers_of
from serve_app.calls.rtc import Rtc
from serve_app.cli import main
from serve_app.commands.stand_ins import REDIS
from serve_app.http import create_app
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.service import Voices
from tests.serve_app.calls.fakes import CallRoom, audio_offer
from tests.serve_app.calls.test_rtc import NamedOwners, next_of, start
from tests.serve_app.fakes import EchoBackend, recordings_over, tone, wait_until, wav_file
from tests.serve_app.redis_server import RedisServer, requires_redis

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

    def socket(self, key: str) -> WebSocketTestSession:
        return self.client.websocket_connect(f"ws://localhost:8000/v1/rtc/ws?access_token={key}")

    def publish(self, key: str, voice: str = "martin") -> Any:
        path = f"/v1/rtc/whip?voice={voice}"
        return self.ask(key, "POST", path, content=audio_offer("sendonly"), headers=SDP)


@contextmanager
def replica(
    folder: Path, keys: str | None, *, consent: bool = False, operator: str = OPERATOR, name: str = "here"
) -> Iterator[Replica]:
    """A replica whose voices are in `folder`; several share it as they would on a cluster."""
    store = None if keys is None else checked_keys(keys)
    room = OwnedRoom(RtcArgs(max_calls=8), owner=name)
    recordings = recordings_over(EchoBackend(), FolderVoiceStore(folder), Limits())
    room.voices = recordings.voices
    rtcs: dict[str, Rtc] = {}
    rtcs[name] = rtc = Rtc(room.calls, NamedOwners(name, rtcs), lambda: ice_servers_of(room.args), room.args)
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
    monkeypatch.setattr(ring, "AWAY_S", 0.02)
    monkeypatch.setattr(meter, "LOOK_EVERY_S", 0.02)


class LastingRedis(RedisServer):
    """One whose data outlast it, with a database for each test."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._used = folder, 0

    def fresh_url(self) -> str:
        self._used += 1
        return f"{self.url}/{self._used}"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        options += ["--appendfsync", "always", "--save", ""]
        self._process = subprocess.Popen([REDIS, *options], stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Redis listens")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingRedis]:
    server = LastingRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["file", pytest.param("redis", marks=requires_redis)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where keys are kept."""
    if request.param == "file":
        return str(tmp_path / "keys" / "keys.json")
    server: LastingRedis = request.getfixturevalue("redis")
    return server.fresh_url()


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
        with two.socket(bob) as call:
            assert start(call)["type"] == "ready"
            call.send_json({"type": "change", "voice": private})
            told = next(told for told in iter(call.receive_json, None) if told["type"] in ("error", "settings"))
            assert told.get("code") == "voice_not_found"
        assert two.ask(ann, "POST", f"{SPEECH}/{private}", **audio).status_code == 200
        assert two.publish(ann, private).status_code == 201
        assert one.ask(bob, "DELETE", f"/v1/voices/{shared}").status_code == 403
        owned = {voice["voice_id"]: voice["is_owner"] for voice in one.ask(ann, "GET", "/v1/voices").json()["voices"]}
        assert owned[private] and not owned[shared] and not owned["martin"]

        with two.socket(ann) as call:
            assert start(call)["type"] == "ready"
            call.send_json({"type": "change", "voice": private})
            assert next_of(call, "settings")["voice"] == private
            assert main(["keys", "revoke", "ann", "--keys", place]) == 0
            assert next_of(call, "end")["reason"] == "key_revoked"
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


# --- limits


def detail_of(answer: Any) -> tuple[int, str, bool]:
    """Status, code, and whether it says when to come back."""
    return answer.status_code, answer.json()["detail"]["status"], int(answer.headers.get("Retry-After", 0)) > 0


def test_each_limit_of_a_key_is_named_where_it_is_reached(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = add_key(capsys, place, "ann", "--calls", "1", "--voices", "1", "--minutes-a-day", "1", "--upload-mb", "1")
    quick = add_key(capsys, place, "quick", "--requests-a-second", "3")
    with ExitStack() as stack:
        one = stack.enter_context(replica(tmp_path, place))
        two = stack.enter_context(replica(tmp_path, place)) if place.startswith("redis") else one
        call = one.publish(ann)
        assert call.status_code == 201
        refused = two.publish(ann)
        assert detail_of(refused) == (429, "too_many_concurrent_requests", True) and "1 calls" in refused.text
        assert two.publish(OPERATOR).status_code == 201
        assert one.ask(ann, "DELETE", call.headers["Location"]).status_code == 200
        wait_until(lambda: two.publish(ann).status_code == 201, "the place is given back")

        assert one.add_voice(ann).status_code == 200
        refused = two.add_voice(ann)
        assert detail_of(refused) == (400, "voice_limit_reached", False) and "1 voices" in refused.text

        monkeypatch.setattr(ring, "time", lambda: 1e9)  # one second that lasts
        answers = [each.ask(quick, "GET", "/v1/models") for each in (one, two) * 3]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 3
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert detail_of(refused) == (429, "rate_limited", True) and "3 requests a second" in refused.text

        head = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="x"\r\n\r\n'
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        for body in (b"x" * 1_000_000, chain([head], repeat(b"x" * 100_000, 30))):
            refused = one.ask(ann, "POST", f"{SPEECH}/martin", content=body, headers=form)
            assert detail_of(refused) == (401, "quota_exceeded", True) and "1 MB of uploads a day" in refused.text

        assert two.publish(ann).status_code == 429, "an offer is no upload"
        told = two.ask(ann, "GET", "/v1/user/subscription").json()
        assert (told["voice_slots_used"], told["voice_limit"], told["character_limit"]) == (1, 1, 1000)
        assert told["usage"]["upload_bytes"] > 1_000_000 and told["usage"]["call_seconds"] > 0


def test_a_call_ends_when_the_minutes_of_the_day_are_used_up(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ann = add_key(capsys, place, "ann", "--minutes-a-day", "2")
    with replica(tmp_path, place) as one:
        with one.socket(ann) as call:
            assert start(call)["type"] == "ready"
            assert one.store is not None and one.client.portal is not None
            key_id = ann.split("_")[1]
            one.client.portal.call(one.store.counts.sum, f"call_ms:{key_id}:{today()}", 120_000, 60)
            end = next_of(call, "end")
            assert end["reason"] == "quota_exceeded" and "2 minutes" in end["message"]
        refused = one.publish(ann)
        assert detail_of(refused) == (401, "quota_exceeded", True) and "2 minutes of calls a day" in refused.text
        assert one.publish(OPERATOR).status_code == 201


def test_a_call_that_comes_back_keeps_its_place_and_its_private_voice(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, bob = add_key(capsys, place, "ann", "--calls", "1"), add_key(capsys, place, "bob")
    with ExitStack() as stack:
        one = stack.enter_context(replica(tmp_path, place))
        lost, back = stack.enter_context(one.socket(ann)), stack.enter_context(one.socket(ann))
        private = one.add_voice(ann).json()["voice_id"]
        first = start(lost, voice=private)
        with one.socket(bob) as stranger:
            assert start(stranger, voice=None, replaces=first["session"])["code"] == "session_not_found"
        with one.socket(ann) as other:
            assert start(other, replaces="here~another")["code"] == "too_many_concurrent_requests"
        second = start(back, voice=None, replaces=first["session"])
        assert second["settings"]["voice"] == private
        assert next_of(lost, "end")["reason"] == "replaced"
        assert one.publish(ann).status_code == 429
        if place.startswith("redis"):  # which another replica shares, that does not reach the first
            two = stack.enter_context(replica(tmp_path, place, name="there"))
            with two.socket(ann) as moved:
                assert start(moved, voice=private, replaces=second["session"])["type"] == "ready"


@requires_redis
def test_calls_outlive_redis_and_everything_heals(
    redis: LastingRedis, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "LEASE_S", 1.0)
    ann = add_key(capsys, redis.url, "ann", "--calls", "1")
    with replica(tmp_path, redis.url) as one, one.socket(ann) as call:
        assert start(call)["type"] == "ready"
        redis.kill()
        wait_until(lambda: one.ask(ann, "GET", "/v1/models").status_code == 503, "keys cannot be checked")
        refused = one.publish(ann)
        assert detail_of(refused) == (503, "system_busy", True) and "try again" in refused.text
        assert one.ask(OPERATOR, "GET", "/v1/models").status_code == 200
        assert main(["keys", "list", "--keys", redis.url]) == 2 and "Redis" in capsys.readouterr().err
        call.send_json({"type": "change", "bypass": True})
        assert next_of(call, "settings")["bypass"]
        redis.start()
        wait_until(lambda: one.ask(ann, "GET", "/v1/models").status_code == 200, "keys are checked again")
        sleep(1.2)
        assert one.publish(ann).status_code == 429, "the running call renews its place"
        call.send_json({"type": "stop"})
        assert next_of(call, "end")["reason"] == "stopped"


# --- tokens and consent


def test_a_token_is_good_for_one_call_of_its_key(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, route = add_key(capsys, place, "ann"), "/v1/single-use-token/call"
    with replica(tmp_path, place) as one:
        private = one.add_voice(ann).json()["voice_id"]
        tokens = [one.ask(key, "POST", route).json()["token"] for key in (ann, OPERATOR, ann, ann)]
        assert one.ask(tokens[0], "GET", "/v1/models").status_code == 401, "it is for calls only"
        for token in tokens[:2]:
            with one.socket(token) as call:
                assert start(call, voice=private)["type"] == "ready"
            with one.socket(token) as call:
                assert call.receive_json()["code"] == "invalid_api_key", "it was used"
        for wrong in (tokens[2][:-1], tokens[2].replace("sutkn_", "sutkn_0"), "sutkn_operator_9_x_y"):
            with one.socket(wrong) as call:
                assert call.receive_json()["code"] == "invalid_api_key"
        with monkeypatch.context() as later:
            later.setattr(ring, "time", lambda: time() + 901)
            with one.socket(tokens[2]) as call:
                assert call.receive_json()["code"] == "invalid_api_key", "its time is over"
        assert main(["keys", "revoke", "ann", "--keys", place]) == 0
        wait_until(lambda: one.ask(ann, "GET", "/v1/models").status_code == 401, "the key is revoked")
        with one.socket(tokens[3]) as call:
            assert call.receive_json()["code"] == "invalid_api_key", "its key was revoked"
        assert one.ask(OPERATOR, "POST", "/v1/single-use-token/tts_websocket").status_code == 422


def test_a_voice_needs_the_consent_of_its_speaker_where_the_server_asks(tmp_path: Path) -> None:
    with replica(tmp_path, None, consent=True) as one:
        refused = one.add_voice(OPERATOR)
        assert refused.status_code == 422 and refused.json()["detail"][0]["loc"] == ["body", "consent"]
        voice_id = one.add_voice(OPERATOR, consent="Ann agreed on 1 May").json()["voice_id"]
        record = FolderVoiceStore(tmp_path).get(voice_id)
        assert record.consent is not None and record.consent["statement"] == "Ann agreed on 1 May"
        assert record.consent["at_unix"] >= record.created_at_unix - 60
        assert "1 May" not in one.ask(OPERATOR, "GET", f"/v1/voices/{voice_id}").text


# --- mistakes


@pytest.mark.parametrize(
    "wrong", ["redis://:geheim@host/0", "redis://host/0?x=1", "redis:///0", "http://host", "redis:x"]
)
def test_a_place_for_keys_that_is_none_is_a_mistake_that_tells_no_password(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "list", "--keys", wrong]) == 2
    with pytest.raises(ValueError, match="keys") as mistake:
        ServeArgs.model_validate({"access": {"keys": wrong}})
    assert "geheim" not in capsys.readouterr().err + str(mistake.value)


def test_a_file_that_others_can_read_holds_no_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="seedvc keys add"):
        checked_keys(str(place))
    add_key(capsys, str(place), "ann")
    place.chmod(0o640)
    for action in (["list"], ["add", "bob"], ["revoke", "ann"]):
        assert main(["keys", *action, "--keys", str(place)]) == 2
        assert "chmod 600" in capsys.readouterr().err
    assert main(["keys", "add", "no spaces", "--keys", str(place)]) == 2

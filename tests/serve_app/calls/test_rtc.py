"""Signalling as clients meet it: the page's socket, WHIP, WHEP, sessions on other replicas, the page itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from configs.schema import ConfigError, load_preset, read_yaml
from configs.serve import IceServerArgs, Limits, RtcArgs, ServeArgs
from serve_app.access import Access
from serve_app.calls.ice import ice_servers_of, own_ice_servers
from serve_app.calls.registry import owner_of
from serve_app.calls.rtc import Rtc
from serve_app.calls.session import Call
from serve_app.edge import Edge
from serve_app.errors import Unavailable
from serve_app.http import add_page, create_app
from serve_app.ingress import open_peer
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.fakes import ANSWER, CallRoom, audio_offer
from tests.serve_app.deploy import CONFIGS
from tests.serve_app.fakes import EchoBackend, recordings_over, wait_until
from tests.webrtc.clients import Client
from webrtc.peer import MESSAGES_AT_ONCE

SDP = {"Content-Type": "application/sdp"}
TRICKLE = {"Content-Type": "application/trickle-ice-sdpfrag"}
FRAGMENT = "a=ice-ufrag:abcd\r\na=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host\r\na=end-of-candidates\r\n"
START = {"type": "start", "voice": "martin", "sdp": audio_offer()}


class NamedOwners:
    """Replicas that find each other by name, as they do on a cluster."""

    def __init__(self, name: str, replicas: dict[str, Rtc]) -> None:
        self.name, self._replicas = name, replicas
        self.held: list[str] = []

    async def ask(self, owner: str, method: str, *args: Any) -> Any:
        assert method == "act_on_session"
        replica = self._replicas.get(owner) or next(iter(self._replicas.values()))
        return await replica.act(*args)

    async def hold(self, method: str, session_id: str) -> None:
        assert method == "wait_session"
        self.held.append(session_id)
        try:
            await self._replicas[self.name].calls.wait(session_id)
        finally:
            self.held.remove(session_id)


@dataclass
class Replica:
    """One ingress replica and a client of it."""

    room: CallRoom
    client: TestClient
    owners: NamedOwners

    def publish(self, offer: str | None = None, **query: Any) -> Any:
        query = {"voice": "martin", **query}
        return self.client.post("/v1/rtc/whip", params=query, content=offer or audio_offer("sendonly"), headers=SDP)

    def socket(self, query: str = "", **options: Any) -> WebSocketTestSession:
        return self.client.websocket_connect(f"ws://localhost:8000/v1/rtc/ws{query}", **options)

    def is_idle(self) -> bool:
        return self.room.calls.live == 0 and not self.owners.held


def replica(
    folder: Path,
    args: RtcArgs | None = None,
    name: str = "here",
    replicas: dict[str, Rtc] | None = None,
    access: Access | None = None,
) -> Replica:
    replicas = {} if replicas is None else replicas
    room = CallRoom(args or RtcArgs(max_calls=2), owner=name)
    owners = NamedOwners(name, replicas)
    rtc = replicas[name] = Rtc(room.calls, owners, lambda: ice_servers_of(room.args), room.args)
    service = recordings_over(EchoBackend(), FolderVoiceStore(folder), Limits())
    client = TestClient(create_app(service, rtc, access), base_url="http://localhost:8000")
    return Replica(room, client, owners)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Replica]:
    """A replica; afterwards no call may be left of what the test did."""
    one = replica(tmp_path)
    with one.client:
        yield one
        wait_until(one.is_idle, "no call is left")


def start(socket: WebSocketTestSession, **fields: Any) -> dict[str, Any]:
    """Begins a call on a fresh socket; the answer to `start`."""
    hello = socket.receive_json()
    assert hello["type"] == "hello"
    socket.send_json(START | fields)
    answer: dict[str, Any] = socket.receive_json()
    return answer


def next_of(socket: WebSocketTestSession, kind: str) -> dict[str, Any]:
    """The next message of a kind."""
    while True:
        message: dict[str, Any] = socket.receive_json()
        if message["type"] == kind:
            return message


def closed(socket: WebSocketTestSession) -> int:
    """The code that the server closes with."""
    with pytest.raises(WebSocketDisconnect) as disconnect:
        while True:
            socket.receive_json()
    return disconnect.value.code


# --- the page's socket


def test_a_socket_is_a_call(here: Replica) -> None:
    with here.socket() as socket:
        hello = socket.receive_json()
        assert hello["default_mode"] == "lowest"
        assert hello["modes"]["lowest"]["block_ms"] == load_preset("tiny").live.lowest.block_ms
        assert hello["ice_servers"] == []
        socket.send_json(START | {"block_ms": None, "steps": None, "bypass": True})
        ready = socket.receive_json()
        assert (ready["type"], ready["sdp"]) == ("ready", ANSWER)
        assert ready["settings"]["bypass"] and ready["settings"]["delay_ms"] == hello["modes"]["lowest"]["delay_ms"]
        assert here.room.calls.live == 1
        socket.send_json({"type": "candidate", "candidate": {"candidate": "candidate:1", "sdpMid": "0"}})
        socket.send_json({"type": "change", "voice": "clara", "bypass": False})
        assert next_of(socket, "settings")["voice"] == "clara"
        assert next_of(socket, "stats")["rtt_ms"] == 12.0
        socket.send_json({"type": "stop"})
        assert next_of(socket, "end")["reason"] == "stopped"
        assert closed(socket) == 1000
    assert here.room.peers[0].candidates[0]["candidate"] == "candidate:1"  # type: ignore[index]


def test_a_socket_that_closes_ends_its_call(here: Replica) -> None:
    for _ in range(3):  # one more than there are places
        with here.socket() as socket:
            assert start(socket)["type"] == "ready"
        wait_until(here.is_idle, "the place is free")


def test_a_full_house_says_when_to_come_back(here: Replica) -> None:
    with here.socket() as first, here.socket() as second, here.socket() as third:
        assert start(first)["type"] == start(second)["type"] == "ready"
        refused = start(third)
        assert (refused["code"], refused["retry_after_s"]) == ("at_capacity", 2)
        assert closed(third) == 1013


def test_a_part_that_does_not_answer_says_when_to_come_back(here: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    async def make_features(voice_id: str, caller: object) -> None:
        raise Unavailable("the encoder does not answer; try again soon")

    monkeypatch.setattr(here.room.calls, "make_features", make_features)
    with here.socket() as socket:
        refused = start(socket)
        assert (refused["code"], refused["retry_after_s"]) == ("system_busy", 5)
        assert closed(socket) == 1008


def test_a_client_that_calls_again_takes_its_old_place(here: Replica) -> None:
    with here.socket() as lost, here.socket() as other, here.socket() as again:
        old = start(lost)
        start(other)
        assert start(again, replaces=old["session"])["type"] == "ready"
        assert next_of(lost, "end")["reason"] == "replaced"


def test_a_client_whose_old_call_does_not_answer_may_call_again(here: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(owner: str, method: str, *args: Any) -> Any:
        raise Unavailable("the server that holds this session does not answer; try again soon")

    monkeypatch.setattr(here.owners, "ask", ask)
    with here.socket() as socket:
        assert start(socket, replaces="gone~0123456789")["type"] == "ready"


def test_a_socket_that_closes_before_the_answer_frees_the_place(here: Replica) -> None:
    here.room.features_gate = asyncio.Event()  # the voice is never ready
    with here.socket() as socket:
        socket.receive_json()
        socket.send_json(START)
        wait_until(lambda: here.room.calls.live == 1, "the place is taken")
    wait_until(here.is_idle, "the place is free")


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ({"type": "start", "voice": "nobody", "sdp": audio_offer()}, "voice_not_found", "nobody"),
        ({"type": "start", "voice": "martin"}, "invalid_message", "sdp"),
        ({"type": "start", "voice": "martin", "sdp": "hello"}, "invalid_offer", "v=0"),
        ({"type": "start", "voice": "martin", "sdp": audio_offer(), "mode": "fast"}, "invalid_message", "'constant'"),
        ({"type": "start", "voice": "martin", "sdp": audio_offer(ufrag="unanswerable")}, "media_failed", "codec"),
        ({"type": "stop"}, "invalid_message", "'start'"),
        ({"type": "sing"}, "invalid_message", "'start'"),
    ],
)
def test_a_bad_start_is_explained(here: Replica, message: dict[str, Any], code: str, words: str) -> None:
    with here.socket() as socket:
        socket.receive_json()
        socket.send_json(message)
        error = socket.receive_json()
        assert (error["type"], error["code"]) == ("error", code)
        assert words in error["message"]
        assert closed(socket) == 1008


def test_a_binary_frame_is_explained_and_the_call_goes_on(here: Replica) -> None:
    with here.socket() as socket:
        start(socket)
        socket.send_bytes(b"\x00")
        assert "binary" in next_of(socket, "error")["message"]
        assert next_of(socket, "stats")["delay_ms"] > 0


def test_a_flood_of_messages_is_thinned_out(here: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Call, "hear", lambda self, text, tell: heard.append(text))
    with here.socket() as socket:
        start(socket)
        for _ in range(1000):
            socket.send_json({"type": "candidate", "candidate": None})
        next_of(socket, "stats")
        wait_until(lambda: len(heard) >= MESSAGES_AT_ONCE, "as many as may come at once have come")
        assert len(heard) < 500


def test_a_socket_without_a_call_is_closed(tmp_path: Path) -> None:
    one = replica(tmp_path, RtcArgs(connect_timeout_s=0.05))
    with one.client, one.socket() as socket:
        assert socket.receive_json()["type"] == "hello"
        assert socket.receive_json()["code"] == "no_start"
        assert closed(socket) == 1008


def test_a_failure_of_ours_tells_nothing_of_its_inside(here: Replica, caplog: pytest.LogCaptureFixture) -> None:
    here.room.calls.open_peer = None  # type: ignore[assignment]
    with here.socket() as socket:
        error = start(socket)
        assert (error["code"], error["message"]) == ("internal_error", "something failed on our side")
        assert closed(socket) == 1011
    assert "NoneType" in caplog.text


def test_a_call_that_fails_on_our_side_closes_its_socket_as_such(here: Replica) -> None:
    with here.socket() as socket:
        assert start(socket)["type"] == "ready"
        here.room.peers[0].failed = True
        here.room.peers[0].closed.set()
        assert next_of(socket, "end")["reason"] == "internal_error"
        assert closed(socket) == 1011


def test_the_edge_turns_what_a_socket_raises_into_a_message(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.websocket("/broken")
    async def broken(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ZeroDivisionError("inside")

    @app.websocket("/early")
    async def early(websocket: WebSocket) -> None:
        raise ZeroDivisionError("inside")

    with TestClient(Edge(app)) as client:
        with client.websocket_connect("/broken") as socket:
            assert socket.receive_json()["code"] == "internal_error"
            assert closed(socket) == 1011
        for path in ("/early", "/nowhere"):
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(path):
                pass
    assert "inside" in caplog.text


# --- WHIP


def test_publishing_by_whip(here: Replica) -> None:
    created = here.publish(mode="constant")
    assert created.status_code == 201
    assert created.headers["content-type"] == "application/sdp"
    assert created.text == ANSWER
    location, etag = created.headers["location"], created.headers["etag"]
    session_id = location.removeprefix("/v1/rtc/sessions/")
    assert owner_of(session_id) == "here"
    assert here.owners.held == [session_id]  # counted as a request for as long as it lasts
    assert here.room.peers[0].direction == "sendrecv"
    assert here.room.streams[0].settings.mode == "constant"

    patch = here.client.patch(location, content=FRAGMENT, headers=TRICKLE | {"If-Match": etag})
    assert (patch.status_code, patch.content) == (204, b"")
    assert "etag" not in patch.headers
    given, last = here.room.peers[0].candidates
    assert given is not None and given["candidate"].startswith("candidate:1 1 udp") and last is None
    for path in ("/v1/rtc/whip", f"/v1/rtc/whep/{session_id}", location):
        assert here.client.get(path).status_code == here.client.head(path).status_code == 204

    assert here.client.delete(location).status_code == 200
    assert here.room.calls.live == 0
    assert here.client.delete(location).status_code == 404
    for path in (f"/v1/rtc/whep/{session_id}", location):
        assert here.client.get(path).status_code == here.client.head(path).status_code == 404


@pytest.mark.parametrize(
    ("headers", "offer", "query", "status", "code"),
    [
        ({"Content-Type": "application/json"}, audio_offer("sendonly"), "voice=martin", 415, "unsupported_media_type"),
        (SDP, "hello", "voice=martin", 400, "invalid_offer"),
        (SDP, b"\xff\xfe", "voice=martin", 400, "invalid_body"),
        (SDP, "v=0\r\n" + "a" * 70000, "voice=martin", 413, "body_too_large"),
        (SDP, audio_offer("sendonly", more="a=rtpmap:1 a/1\r\n" * 200), "voice=martin", 422, "invalid_offer"),
        (SDP, audio_offer("sendonly", codec="PCMU/8000"), "voice=martin", 422, "invalid_offer"),
        (SDP, audio_offer("recvonly"), "voice=martin", 422, "invalid_offer"),
        (SDP, audio_offer("sendonly", ufrag="unanswerable"), "voice=martin", 422, "media_failed"),
        (SDP, audio_offer("sendonly"), "voice=nobody", 404, "voice_not_found"),
    ],
)
def test_whip_refuses_what_it_cannot_take(
    here: Replica, headers: dict[str, str], offer: str | bytes, query: str, status: int, code: str
) -> None:
    answer = here.client.post(f"/v1/rtc/whip?{query}", content=offer, headers=headers)
    assert (answer.status_code, answer.json()["detail"]["status"]) == (status, code)


def test_whip_names_a_query_that_is_wrong(here: Replica) -> None:
    for query, name in (("", "voice"), ("voice=martin&mode=fast", "mode"), ("voice=martin&steps=0", "steps")):
        answer = here.client.post(f"/v1/rtc/whip?{query}", content=audio_offer("sendonly"), headers=SDP)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"][-1] == name


def test_whip_at_capacity(here: Replica) -> None:
    locations = [here.publish().headers["location"] for _ in range(2)]
    refused = here.publish()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.json()["detail"]["status"] == "at_capacity"
    for location in locations:
        here.client.delete(location)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (TRICKLE, FRAGMENT, 428),
        (TRICKLE | {"If-Match": '"stale"'}, FRAGMENT, 412),
        (TRICKLE | {"If-Match": "*"}, FRAGMENT, 422),
        (SDP | {"If-Match": "ETAG"}, FRAGMENT, 415),
        (TRICKLE | {"If-Match": "ETAG"}, "no fragment", 400),
    ],
)
def test_trickling_has_rules(here: Replica, headers: dict[str, str], body: str, status: int) -> None:
    created = here.publish()
    location, etag = created.headers["location"], created.headers["etag"]
    headers = {name: value.replace("ETAG", etag) for name, value in headers.items()}
    assert here.client.patch(location, content=body, headers=headers).status_code == status
    assert here.room.peers[0].candidates == []
    here.client.delete(location)


def test_a_session_ends_with_its_media(here: Replica) -> None:
    location = here.publish().headers["location"]
    here.room.peers[0].closed.set()
    here.client.get("/healthz")  # a turn of the server's loop, which the event was set from outside of
    wait_until(here.is_idle, "the session is over")
    assert here.client.delete(location).status_code == 404


def test_clients_can_ask_what_is_taken(here: Replica) -> None:
    for path in ("/v1/rtc/config", "/v1/rtc/whip", "/v1/rtc/whep/x", "/v1/rtc/sessions/x"):
        asked = here.client.options(path)
        assert (asked.status_code, asked.headers["accept-post"]) == (200, "application/sdp")
        assert "link" not in asked.headers
    refused = here.client.patch("/v1/rtc/sessions/x", content="", headers=SDP)
    assert refused.headers["accept-patch"] == TRICKLE["Content-Type"] and "accept-post" not in refused.headers
    assert here.client.post("/v1/rtc/whip?voice=martin", content="").headers["accept-post"] == SDP["Content-Type"]


# --- WHEP


def test_listening_by_whep(here: Replica) -> None:
    created = here.publish()
    published, address = created.headers["location"], created.headers["x-seedvc-listen"]
    heard = here.client.post(address, content=audio_offer("recvonly"), headers=SDP)
    assert (heard.status_code, heard.text) == (201, ANSWER)
    assert "x-seedvc-listen" not in heard.headers
    assert here.room.peers[1].direction == "sendonly"
    here.client.portal.call(here.room.peers[0].speak, 0.5)  # type: ignore[union-attr]
    wait_until(lambda: here.room.peers[1].played, "the listener hears")
    assert here.client.delete(heard.headers["location"]).status_code == 200
    assert here.room.calls.live == 1
    wrong = here.client.post(address, content=audio_offer("sendonly"), headers=SDP)
    assert wrong.status_code == 422
    assert here.client.get(address).status_code == here.client.head(address).status_code == 204
    here.client.delete(published)
    gone = here.client.post(address, content=audio_offer("recvonly"), headers=SDP)
    assert gone.status_code == here.client.get(address).status_code == 404


def test_a_listener_can_neither_end_nor_change_the_call(here: Replica) -> None:
    """With anything that it knows: the address it listens at, and what it is answered."""
    created = here.publish()
    address, etag = created.headers["x-seedvc-listen"], created.headers["etag"]
    heard = here.client.post(address, content=audio_offer("recvonly"), headers=SDP)
    listen_id = address.rpartition("/")[2]
    assert listen_id not in created.headers["location"]
    own = heard.headers["location"]
    for path in (address, f"/v1/rtc/sessions/{listen_id}"):
        assert here.client.delete(path).status_code in (404, 405)
        patch = here.client.patch(path, content=FRAGMENT, headers=TRICKLE | {"If-Match": etag})
        assert patch.status_code in (404, 405)
    trickled = here.client.patch(own, content=FRAGMENT, headers=TRICKLE | {"If-Match": heard.headers["etag"]})
    assert trickled.status_code == 204 and here.room.peers[0].candidates == []
    with here.socket() as socket:
        assert start(socket, replaces=listen_id)["type"] == "ready"
        assert here.room.calls.live == 2, "the call goes on beside the new one"
    here.client.delete(own)
    wait_until(lambda: here.room.calls.live == 1, "the listener and the socket's call are gone")
    assert here.client.delete(created.headers["location"]).status_code == 200


def test_a_call_on_a_socket_can_be_listened_to(here: Replica) -> None:
    with here.socket() as socket:
        ready = start(socket)
        assert ready["listen"] != ready["session"]
        for call_id in (ready["listen"], ready["session"]):  # its client may use the other one itself
            heard = here.client.post(f"/v1/rtc/whep/{call_id}", content=audio_offer("recvonly"), headers=SDP)
            assert heard.status_code == 201


# --- where a client is


@pytest.mark.parametrize(
    ("host", "headers", "local"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("192.0.2.7", {}, False),
        ("testclient", {}, False),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, False),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.7"}, False),
    ],
)
def test_only_a_client_of_this_machine_is_reached_on_it(
    here: Replica, host: str, headers: dict[str, str], local: bool
) -> None:
    with TestClient(here.client.app, client=(host, 4711), base_url="http://localhost:8000") as client:
        created = client.post("/v1/rtc/whip?voice=martin", content=audio_offer(), headers=SDP | headers)
        session_id = created.headers["location"].rpartition("/")[2]
        client.post(f"/v1/rtc/whep/{session_id}", content=audio_offer("recvonly"), headers=SDP | headers)
        with client.websocket_connect("ws://localhost:8000/v1/rtc/ws", headers=headers) as socket:
            assert start(socket)["type"] == "ready"
        client.delete(created.headers["location"])
    assert [peer.loopback for peer in here.room.peers] == [local] * 3


def test_the_configuration_says_how_far_a_call_reaches() -> None:
    async def reach(**options: Any) -> tuple[bool, bool]:
        args = RtcArgs(private_addresses=options.pop("private"))
        peer = open_peer(args, on_frame=lambda frame: None, **options)
        await peer.close()
        return peer._reach.private, peer._reach.loopback

    assert asyncio.run(reach(private=True)) == (True, False)
    assert asyncio.run(reach(private=False, loopback=True)) == (False, True)


# --- several replicas


def test_any_replica_reaches_a_session(tmp_path: Path) -> None:
    replicas: dict[str, Rtc] = {}
    left, right = (replica(tmp_path, name=name, replicas=replicas) for name in ("left", "right"))
    with left.client:
        right.client.portal = left.client.portal  # one loop for both
        created = left.publish()
        location, etag = created.headers["location"], created.headers["etag"]
        session_id = location.removeprefix("/v1/rtc/sessions/")
        patch = right.client.patch(location, content=FRAGMENT, headers=TRICKLE | {"If-Match": etag})
        assert patch.status_code == 204
        assert len(left.room.peers[0].candidates) == 2
        assert right.client.get(location).status_code == 204
        stale = right.client.patch(location, content=FRAGMENT, headers=TRICKLE | {"If-Match": '"x"'})
        assert stale.status_code == 412
        heard = right.client.post(f"/v1/rtc/whep/{session_id}", content=audio_offer("recvonly"), headers=SDP)
        assert owner_of(heard.headers["location"].removeprefix("/v1/rtc/sessions/")) == "left"
        assert right.client.delete(location).status_code == 200
        assert left.is_idle()
        del replicas["left"]
        assert right.client.delete(location).status_code == 404


# --- keys, servers, the page


def test_an_api_key_is_asked_for_where_one_is_set(tmp_path: Path) -> None:
    one = replica(tmp_path, access=Access(key="sesame"))
    with one.client:
        refused = one.publish()
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert one.client.options("/v1/rtc/whip").status_code == 200
        key = {"Authorization": "Bearer sesame"}
        created = one.client.post("/v1/rtc/whip?voice=martin", content=audio_offer("sendonly"), headers=SDP | key)
        assert created.status_code == 201
        assert one.client.delete(created.headers["location"]).status_code == 401
        assert one.client.delete(created.headers["location"], headers=key).status_code == 200
        for query in ("", "?access_token=open"):
            with one.socket(query) as socket:
                assert socket.receive_json()["code"] == "invalid_api_key"
                assert closed(socket) == 1008
        with one.socket(headers=key) as socket:
            assert start(socket)["type"] == "ready"


def test_a_proxy_may_have_the_authorization_header_for_itself(tmp_path: Path) -> None:
    one = replica(tmp_path, access=Access(key="sesame"))
    basic = {"Authorization": "Basic dXNlcjpwYXNz"}
    with one.client, one.socket("?access_token=sesame", headers=basic) as socket:
        assert start(socket)["type"] == "ready"
    with one.client, one.socket(headers=basic | {"xi-api-key": "sesame"}) as socket:
        assert start(socket)["type"] == "ready"


def test_a_socket_is_for_the_servers_own_page_and_for_those_named(tmp_path: Path) -> None:
    one = replica(tmp_path, access=Access(origins=("https://page.example",)))
    with one.client:
        for origin in ("http://localhost:8000", "https://page.example"):
            with one.socket(headers={"Origin": origin}) as socket:
                assert socket.receive_json()["type"] == "hello"
        for origin in ("https://evil.example", "http://localhost:9000", "null", "https://page.example.evil.example"):
            with pytest.raises(WebSocketDisconnect), one.socket(headers={"Origin": origin}):
                pass
        with pytest.raises(WebSocketDisconnect), one.socket(headers={"Host": "evil.example"}):
            pass


TURN = RtcArgs(
    ice_servers=(IceServerArgs(urls=("stun:stun.example.org",)), IceServerArgs(urls=("turn:turn.example.org:3478",))),
    credential_s=600,
)


def test_turn_credentials_are_made_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVC_TURN_SECRET", "of two")
    one = replica(tmp_path, TURN)
    with one.client:
        stun, turn = one.client.get("/v1/rtc/config").json()["ice_servers"]
        assert stun == {"urls": ["stun:stun.example.org"]}
        assert turn["urls"] == ["turn:turn.example.org:3478"]
        assert turn["username"].endswith(":seedvc") and turn["credential"]
        created = one.publish()
        links = created.headers.get_list("link")
        assert links[0] == '<stun:stun.example.org>; rel="ice-server"'
        assert links[1].startswith('<turn:turn.example.org:3478>; rel="ice-server"; username="')
        assert links[1].endswith('credential-type="password"')
        one.client.delete(created.headers["location"])


def test_one_server_may_be_reached_by_stun_and_by_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVC_TURN_SECRET", "of two")
    urls = ("stun:one.example.org", "turn:one.example.org")
    one = replica(tmp_path, RtcArgs(ice_servers=(IceServerArgs(urls=urls),)))
    with one.client:
        (told,) = one.client.get("/v1/rtc/config").json()["ice_servers"]
        assert told["urls"] == list(urls) and told["credential"]
        created = one.publish()
        stun, turn = created.headers.get_list("link")
        assert stun == '<stun:one.example.org>; rel="ice-server"' and "credential=" in turn
        one.client.delete(created.headers["location"])


def test_a_turn_server_without_its_secret_is_a_mistake_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEEDVC_TURN_SECRET", raising=False)
    with pytest.raises(ConfigError, match="turn.example.org.*SEEDVC_TURN_SECRET"):
        ice_servers_of(TURN)


async def test_a_server_that_clients_can_reach_asks_none_of_the_servers_named_for_them() -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        args = RtcArgs(ice_servers=(IceServerArgs(urls=(f"stun:127.0.0.1:{silent.getsockname()[1]}",)),))
        client, peer = Client(), open_peer(args, on_frame=lambda frame: None)
        try:
            assert "a=candidate:" in await peer.answer(await client.offer())
            with pytest.raises(BlockingIOError):
                silent.recv(2048)
        finally:
            await peer.close()
            await client.close()


def test_a_server_behind_nat_uses_the_servers_named_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVC_TURN_SECRET", "of two")
    assert own_ice_servers(TURN) == []
    behind_nat = TURN.model_copy(update={"behind_nat": True})
    assert [server.urls for server in own_ice_servers(behind_nat)] == [server.urls for server in TURN.ice_servers]


@pytest.mark.parametrize("config", ["local", "cpu", "gpu"])
def test_replicas_are_added_before_calls_are_refused_and_other_requests_find_room(config: str) -> None:
    application = read_yaml(CONFIGS / f"{config}.yaml")["applications"][0]
    max_calls = ServeArgs.model_validate(application["args"]).rtc.max_calls
    ingress = next(options for options in application["deployments"] if options["name"] == "Ingress")
    assert ingress["max_ongoing_requests"] >= 2 * max_calls
    scaling = ingress["autoscaling_config"]
    assert scaling["max_replicas"] == 1 or scaling["target_ongoing_requests"] < max_calls


def test_the_page_is_served_beside_the_api(here: Replica, tmp_path: Path) -> None:
    page = here.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    unknown = here.client.get("/v1/nothing")
    assert unknown.json() == {"detail": {"status": "not_found", "message": "Not Found"}}
    assert here.client.delete("/v1/models").status_code == 405
    assert here.client.get("/docs").status_code == 200


def test_page_files_have_their_types(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>page</p>")
    (tmp_path / "icons").mkdir()
    (tmp_path / "icons" / "a.svg").write_text("<svg/>")
    (tmp_path / "app.js").write_text("export {};")
    app = FastAPI()
    add_page(app, tmp_path)
    with TestClient(app) as client:
        assert client.get("/").text == "<p>page</p>"
        assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/icons/a.svg").headers["content-type"].startswith("image/svg+xml")
        assert client.head("/app.js").status_code == 200
        assert client.get("/../conftest.py").status_code == 404


def test_a_server_without_a_page(tmp_path: Path) -> None:
    one = replica(tmp_path, RtcArgs(page=False))
    with one.client:
        assert one.client.get("/").status_code == 404
        assert one.client.get("/v1/rtc/config").json()["type"] == "hello"


def test_openapi_shows_the_routes_of_calls(here: Replica) -> None:
    paths = json.loads(here.client.get("/openapi.json").content)["paths"]
    assert "application/sdp" in paths["/v1/rtc/whip"]["post"]["requestBody"]["content"]
    assert {"voice", "mode", "block_ms", "steps", "bypass", "adapt"} == {
        parameter["name"] for parameter in paths["/v1/rtc/whip"]["post"]["parameters"]
    }

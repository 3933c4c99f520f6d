"""Calls with real media on loopback: aiortc's own client on one side, signalling, peer and stream on the other."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from configs.serve import Limits, RtcArgs
from serve_app.calls.rtc import Rtc
from serve_app.http import create_app
from serve_app.ingress import open_peer
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.fakes import CallRoom
from tests.serve_app.calls.test_rtc import SDP, NamedOwners
from tests.serve_app.fakes import EchoBackend, recordings_over
from tests.webrtc.clients import Client, until

PUBLISH = "/v1/rtc/whip?voice=martin"


@dataclass
class Server:
    """The routes with real peers; the stages answer with a tone."""

    http: httpx.AsyncClient
    room: CallRoom

    async def call(self, client: Client, path: str = PUBLISH) -> httpx.Response:
        """Signals for a client, as WHIP does."""
        created = await self.http.post(path, content=await client.offer(), headers=SDP)
        assert created.status_code == 201, created.text
        await client.accept(created.text)
        return created


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    room = CallRoom(RtcArgs(max_calls=1), make_peer=partial(open_peer, RtcArgs(lost_after_s=6.0)))
    replicas: dict[str, Rtc] = {}
    rtc = replicas["here"] = Rtc(room.calls, NamedOwners("here", replicas), list, room.args)
    app = create_app(recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits()), rtc)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield Server(http, room)
    await until(lambda: room.calls.live == 0, "no call is left")
    assert all(peer.closed.is_set() for peer in room.peers)


def loudness(client: Client) -> float:
    """Of the last half second that a client heard."""
    return float(np.abs(np.concatenate(client.heard[-25:])).max()) if client.heard else 0.0


def told(client: Client, kind: str) -> list[dict[str, Any]]:
    """What came on the data channel."""
    return [message for message in map(json.loads, client.messages) if message["type"] == kind]


async def test_a_call_both_ways_with_changes_on_the_data_channel(server: Server) -> None:
    client = Client()
    created = await server.call(client)
    await until(lambda: loudness(client) > 0.02, "the converted sound arrives")
    await until(lambda: told(client, "stats"), "statistics arrive")
    assert client.channel is not None
    client.channel.send(json.dumps({"type": "change", "voice": "clara"}))
    await until(lambda: told(client, "settings"), "the change is confirmed")
    assert told(client, "settings")[0]["voice"] == "clara"
    await until(lambda: "clara" in server.room.stages.voices, "the new voice is used")
    client.channel.send(json.dumps({"type": "change", "steps": -1}))
    await until(lambda: told(client, "error"), "the mistake is explained")
    assert "steps" in told(client, "error")[0]["message"]
    assert (await server.http.delete(created.headers["location"])).status_code == 200
    await client.close()


async def test_one_speaks_another_listens(server: Server) -> None:
    speaker, listener = Client(direction="sendonly", channel=False), Client(direction="recvonly", channel=False)
    published = await server.call(speaker)
    heard = await server.call(listener, published.headers["x-seedvc-listen"])
    await until(lambda: loudness(listener) > 0.02, "the converted sound arrives")
    assert not speaker.heard
    assert (await server.http.delete(heard.headers["location"])).status_code == 200
    assert (await server.http.delete(published.headers["location"])).status_code == 200
    await asyncio.gather(speaker.close(), listener.close())


OFFER = """v=0
o=- 20261128 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE {bundle}
"""
VIDEO = """m=video {port} UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:v
a={direction}
a=rtcp-mux
a=rtpmap:96 VP8/90000
{transport}"""
AUDIO = """m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=mid:a
a={direction}
a=rtcp-mux
a=rtpmap:111 opus/48000/2
{transport}"""
TRANSPORT = f"""a=ice-ufrag:uf1x
a=ice-pwd:abcdefghijklmnopqrstuv01
a=fingerprint:sha-256 {":".join(["AB"] * 32)}
a=setup:actpass
"""


async def test_a_stopped_camera_is_no_reason_to_refuse(server: Server) -> None:
    """A browser keeps the section of what it has stopped, with port 0."""
    video = VIDEO.format(port=0, direction="inactive", transport="")
    offer = OFFER.format(bundle="a") + AUDIO.format(direction="sendrecv", transport=TRANSPORT) + video
    created = await server.http.post(PUBLISH, content=offer, headers=SDP)
    assert created.status_code == 201, created.text
    head, audio, video = re.split("^(?=m=)", created.text, flags=re.MULTILINE)
    assert "a=group:BUNDLE a\r\n" in head and "a=sendrecv\r\n" in audio and " opus/48000/2\r\n" in audio
    assert video == "m=video 0 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:v\r\na=inactive\r\n"
    await server.http.delete(created.headers["location"])


async def test_a_player_that_asks_for_video_too_gets_the_sound(server: Server) -> None:
    speaker = Client(direction="sendonly", channel=False)
    published = await server.call(speaker)
    video = VIDEO.format(port=9, direction="recvonly", transport=TRANSPORT)
    offer = OFFER.format(bundle="v a") + video + AUDIO.format(direction="recvonly", transport=TRANSPORT)
    session_id = published.headers["location"].rpartition("/")[2]
    heard = await server.http.post(f"/v1/rtc/whep/{session_id}", content=offer, headers=SDP)
    assert heard.status_code == 201, heard.text
    head, video, audio = re.split("^(?=m=)", heard.text, flags=re.MULTILINE)
    assert "a=group:BUNDLE a\r\n" in head and video.startswith("m=video 0 ") and "a=sendonly\r\n" in audio
    for created in (heard, published):
        assert (await server.http.delete(created.headers["location"])).status_code == 200
    await speaker.close()


async def test_a_large_offer_is_refused_in_no_time(server: Server) -> None:
    """Each of its lines is one more for each of the others, where a parser looks them up."""
    offer = OFFER.format(bundle="a") + AUDIO.format(direction="sendrecv", transport=TRANSPORT)
    for more in (
        "a=rtpmap:1 a/1\r\n" * 900 + "a=rtcp-fb:* x\r\n" * 900,
        "a=x\r\n" * 9000,
        "m=audio 9 RTP/SAVPF 1\r\n" * 99,
    ):
        refused = await server.http.post(PUBLISH, content=offer + more, headers=SDP)
        assert (refused.status_code, refused.json()["detail"]["status"]) == (422, "invalid_offer")


async def test_clients_that_leave_in_any_way_free_the_one_place(server: Server) -> None:
    hanging_up = Client()
    await server.call(hanging_up)
    await until(lambda: hanging_up.heard, "the first call is up")
    await hanging_up.close()
    await until(lambda: server.room.calls.live == 0, "a closed connection frees the place")

    vanishing = Client()
    await server.call(vanishing)
    await until(lambda: vanishing.heard, "the second call is up")
    await vanishing.connection.sctp.transport.transport.stop()  # type: ignore[union-attr]  # no word of farewell
    await until(lambda: server.room.calls.live == 0, "a vanished client frees the place")
    await vanishing.close()

    client = Client()
    refused = await server.http.post(PUBLISH, content=(await client.offer()).replace("opus", "speex"), headers=SDP)
    assert (refused.status_code, refused.json()["detail"]["status"]) == (422, "invalid_offer")
    await client.close()

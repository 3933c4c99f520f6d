"""Calls with real media on loopback: aiortc's own client on one side, signalling, peer and stream on the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from configs.serve import Limits, RtcArgs
from serve_app.http import create_app
from serve_app.rtc import Rtc
from serve_app.service import Service
from serve_app.stores.voices import FolderVoiceStore
from tests.serve_app.call_fakes import CallRoom
from tests.serve_app.fakes import EchoBackend
from tests.serve_app.test_rtc import SDP, NamedOwners
from tests.webrtc.clients import Client, until
from webrtc.peer import Peer

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
    room = CallRoom(RtcArgs(max_calls=1), make_peer=partial(Peer, (), lost_after_s=6.0))
    replicas: dict[str, Rtc] = {}
    rtc = replicas["here"] = Rtc(room.calls, NamedOwners("here", replicas), list, room.args)
    app = create_app(Service(EchoBackend(), FolderVoiceStore(tmp_path), Limits()), rtc)
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

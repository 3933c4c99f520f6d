"""Calls through the real graph that end badly: broken sockets free their places."""

from __future__ import annotations

import json

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.serve_app.deploy import Deployed
from tests.webrtc.clients import Client

pytestmark = pytest.mark.ray


async def start(socket: ClientConnection, client: Client, voice: str) -> str:
    """What the page sends to begin a call; the session's name."""
    assert json.loads(await socket.recv())["type"] == "hello"
    await socket.send(json.dumps({"type": "start", "voice": voice, "sdp": await client.offer()}))
    ready = json.loads(await socket.recv())
    assert ready["type"] == "ready", ready
    return str(ready["session"])


async def test_sockets_that_break_free_their_places(graph: Deployed) -> None:
    """More calls are broken off than there are places, one way or the other; the next one is taken."""
    url = graph.http_url.replace("http", "ws") + "/v1/rtc/ws"
    for number in range(10):
        socket, client = await connect(url), Client()
        await start(socket, client, graph.voice_id)
        if number % 2:
            socket.transport.abort()  # no word of farewell
        else:
            await socket.close()
        await client.close()
    async with connect(url) as socket:
        client = Client()
        assert await start(socket, client, graph.voice_id)
        await client.close()

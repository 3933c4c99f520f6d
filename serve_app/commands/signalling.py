"""The WebSocket of a call, as a client sees it: offer out, answer in, then changes and reports until one side ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from serve_app.commands import UserMistake
from serve_app.commands.remote import key_header, unreached

PATH = "/v1/rtc/ws"
ANSWER_TIMEOUT_S = 30.0
"""A model that scales up from zero replicas takes its time; media itself has its own time-out."""

Message = dict[str, Any]


class CallRefused(UserMistake):
    """The server's own words for not taking a call, or for ending it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Signalling:
    """One open WebSocket, whose `hello` has been read."""

    def __init__(self, socket: ClientConnection, url: str, hello: Message) -> None:
        self._socket = socket
        self._url = url
        self.hello = hello

    @property
    def ice_servers(self) -> Sequence[Mapping[str, Any]]:
        """STUN and TURN servers, with credentials that last for this call."""
        servers: Sequence[Mapping[str, Any]] = self.hello["ice_servers"]
        return servers

    async def start(self, offer: str, **settings: object) -> Message:
        """Ask for a call; the `ready` message with the answer.

        Raises:
            CallRefused: the server does not take it.
        """
        await self.send({"type": "start", "sdp": offer} | settings)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                async for message in self.messages():
                    if message["type"] == "ready":
                        return message
                    if message["type"] == "error":
                        raise CallRefused(message["code"], f"{self._url} refused the call: {message['message']}")
        except TimeoutError as error:
            raise UserMistake(f"{self._url} did not answer the call within {ANSWER_TIMEOUT_S:.0f} s") from error
        raise UserMistake(f"{self._url} closed the connection before it answered the call")

    async def send(self, message: Message) -> None:
        """One message to the server; nothing where the connection is gone, which `messages` tells."""
        try:
            await self._socket.send(json.dumps(message))
        except ConnectionClosed:
            return

    async def messages(self) -> AsyncIterator[Message]:
        """What the server says, until it closes the connection."""
        try:
            async for text in self._socket:
                yield json.loads(text)
        except ConnectionClosed:
            return


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Signalling]:
    """A WebSocket to the server at an http(s) URL; UserMistake where none answers as one."""
    address = url.rstrip("/").replace("http", "ws", 1) + PATH
    try:
        socket = await connect(address, max_size=1 << 20, additional_headers=key_header())
    except InvalidURI as error:
        raise UserMistake(f"{url!r} is not a URL: {error}") from error
    except InvalidStatus as error:
        raise UserMistake(f"{url} takes no calls: it answers with status {error.response.status_code}") from error
    except InvalidHandshake as error:
        raise UserMistake(f"{url} is not a seedvc server: {error}") from error
    except (OSError, TimeoutError) as error:
        raise UserMistake(unreached(url, error)) from error
    async with socket:
        try:
            hello = json.loads(await asyncio.wait_for(socket.recv(), ANSWER_TIMEOUT_S))
        except (ConnectionClosed, TimeoutError, ValueError) as error:
            raise UserMistake(f"{url} is not a seedvc server: it does not say hello") from error
        if hello.get("type") == "error":
            raise CallRefused(hello["code"], f"{url} refused the call: {hello['message']}")
        yield Signalling(socket, url, hello)

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
CLOSE_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 30.0
"""A model that scales up from zero replicas takes its time; media itself has its own time-out."""

Message = dict[str, Any]


PASSING = {
    "connection_lost", "server_unreachable", "media_failed", "shutting_down", "at_capacity", "system_busy",
    "internal_error",
}  # fmt: skip
"""What may be over at the next try, as the page's dialer has it."""


class CallFailed(UserMistake):
    """Why a call did not come about, or has ended: a code of the protocol or of the page's dialer, and a sentence."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after_s = code, retry_after_s

    @property
    def passing(self) -> bool:
        """Whether another try may help."""
        return self.code in PASSING


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
            CallFailed: the server does not take it, or is gone.
        """
        await self.send({"type": "start", "sdp": offer} | settings)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                async for message in self.messages():
                    if message["type"] == "ready":
                        return message
                    if message["type"] == "error":
                        raise _refused(self._url, message)
        except TimeoutError as error:
            told = f"{self._url} did not answer the call within {ANSWER_TIMEOUT_S:.0f} s"
            raise CallFailed("server_unreachable", told) from error
        raise CallFailed("connection_lost", f"{self._url} closed the connection before it answered the call")

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


def _refused(url: str, error: Message) -> CallFailed:
    """The server's own words for not taking a call."""
    return CallFailed(error["code"], f"{url} refused the call: {error['message']}", error.get("retry_after_s"))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Signalling]:
    """A WebSocket to the server at an http(s) URL; CallFailed where none answers as one."""
    address = url.rstrip("/").replace("http", "ws", 1) + PATH
    try:
        socket = await connect(
            address, max_size=1 << 20, additional_headers=key_header(), close_timeout=CLOSE_TIMEOUT_S
        )
    except InvalidURI as error:
        raise UserMistake(f"{url!r} is not a URL: {error}") from error
    except InvalidStatus as error:
        status, retry_after = error.response.status_code, error.response.headers.get("Retry-After", "")
        raise CallFailed(
            "server_unreachable" if status == 429 or status >= 500 else "refused",  # Serve's proxy alone answers 500
            f"{url} takes no calls: it answers with status {status}",
            float(retry_after) if retry_after.isdigit() else None,
        ) from error
    except InvalidHandshake as error:
        raise CallFailed("server_unreachable", f"{url} is not a seedvc server: {error}") from error
    except (OSError, TimeoutError) as error:
        raise CallFailed("server_unreachable", unreached(url, error)) from error
    async with socket:
        try:
            hello = json.loads(await asyncio.wait_for(socket.recv(), ANSWER_TIMEOUT_S))
        except (ConnectionClosed, TimeoutError, ValueError) as error:
            told = f"{url} is not a seedvc server: it does not say hello"
            raise CallFailed("server_unreachable", told) from error
        if hello.get("type") == "error":
            raise _refused(url, hello)
        yield Signalling(socket, url, hello)

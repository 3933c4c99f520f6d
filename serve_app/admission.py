"""Who may send what: a bounded number of bodies, sockets and refusals at once, so that health and calls find room."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.serve import Limits
from serve_app.calls.rtc import PREFIX
from serve_app.forms import header
from serve_app.places import Place, Places

_DRAIN_S = 5.0
_DRAIN_PAUSE_S = 1.0


class Admission:
    """Gives each request with a body a place until it is answered, and each socket one until its client speaks.

    Offers and candidates of calls have places of their own, so that neither they nor uploads wait for the other.
    """

    def __init__(self, app: ASGIApp, limits: Limits, max_waiting: int) -> None:
        self._app = app
        self._uploads = Places("uploads", limits.max_uploads, limits)
        self._offers = Places("offers and candidates", max_waiting, limits)
        self._sockets = Places("sockets without a call", max_waiting, limits, at_once=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on when it has a place. Raises AtCapacity, UploadStalled or Displaced."""
        if scope["type"] == "http" and _has_body(scope):
            await self._serve_body(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        places = self._offers if f"{PREFIX}/" in scope["path"] else self._uploads
        place = places.take()
        scope.setdefault("state", {})["place"] = place
        uploaded = False

        async def placed_receive() -> Message:
            nonlocal uploaded
            if uploaded:
                return await receive()
            message = await place.receive(receive)
            uploaded = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        try:
            await self._app(scope, placed_receive, send)
        finally:
            places.free(place)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        place: Place | None = self._sockets.take()

        async def placed_receive() -> Message:
            nonlocal place
            if place is None:
                return await receive()
            message = await place.wait(receive)
            if message["type"] == "websocket.receive":
                self._sockets.free(place)
                place = None
            return message

        try:
            await self._app(scope, placed_receive, send)
        finally:
            if place is not None:
                self._sockets.free(place)


def _has_body(scope: Scope) -> bool:
    return header(scope, b"content-length") not in ("", "0") or bool(header(scope, b"transfer-encoding"))


class Drains:
    """Refused clients that are still sending: a few may finish, the others are cut off."""

    def __init__(self, n_places: int) -> None:
        self._free = n_places

    async def drain(self, receive: Receive) -> None:
        """Reads the rest of a body while it keeps coming, up to a limit."""
        if not self._free:
            return
        self._free -= 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    more = True
                    while more:
                        async with asyncio.timeout(_DRAIN_PAUSE_S):
                            message = await receive()
                        more = message["type"] == "http.request" and message.get("more_body", False)
        finally:
            self._free += 1

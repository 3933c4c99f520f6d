"""The outermost layers of the HTTP app: errors become answers, and headers tell browsers to keep other pages away."""

from __future__ import annotations

import logging
import re
import uuid
from contextlib import suppress

from fastapi import WebSocketDisconnect
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.serve import MAX_REFUSING
from serve_app.admission import Drains
from serve_app.calls.protocol import problem, write
from serve_app.calls.socket import close_code
from serve_app.errors import ClientGone, Refusal, internal_error, refusal
from serve_app.forms import header

log = logging.getLogger("seedvc.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SAFETY = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of answers that set no others: they are data, and no page may frame them."""


class SafetyHeaders:
    """Adds the headers that keep other pages away from our answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; an answer's own headers stay."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                for name, value in SAFETY.items():
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Edge:
    """The outermost layer: names the request, and makes every error an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._drains = Drains(MAX_REFUSING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on. A failure of ours is logged once, and the answer says nothing of its inside."""
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_id = header(scope, b"x-request-id")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = Exchange(receive, send, request_id, self._drains)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            log.info("client hung up", extra={"request_id": request_id})
        except Exception as error:
            known = refusal(error)
            if known is None:
                log.error("request failed", exc_info=error, extra={"request_id": request_id})
            if not exchange.started:
                await answer_of(known or internal_error(request_id))(scope, exchange.receive, exchange.send)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A socket's handler reports its own errors. Any other becomes an `error` message and closes the socket."""
        accepted = False

        async def noting_send(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except (ClientGone, WebSocketDisconnect):
            log.info("client left its socket")
        except Exception as error:
            if refusal(error) is None:
                log.error("socket failed", exc_info=error)
            with suppress(Exception):  # the socket may be closed already
                if accepted:
                    await send({"type": "websocket.send", "text": write(problem(error))})
                await send({"type": "websocket.close", "code": close_code(error), "reason": ""})


class Exchange:
    """One request and its answer. A refusal ends only when the client has stopped sending.

    A server closes the connection on an answer that ends before the upload, and a client that is still writing then
    sees a broken pipe in place of the refusal.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str, drains: Drains) -> None:
        self._receive, self._send, self._drains = receive, send, drains
        self._request_id = request_id
        self._uploaded = False
        self._refused = False
        self.started = False

    async def receive(self) -> Message:
        """The next message of the client; ClientGone where there is none.

        Serve cancels a request whose client leaves, and raises here before it reports that.
        """
        try:
            message = await self._receive()
        except Exception as error:
            raise ClientGone("the client hung up") from error
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._uploaded = True
        return message

    async def send(self, message: Message) -> None:
        """Sends one message of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            self._refused = message["status"] >= 400
            headers = [*message.get("headers", []), (b"request-id", self._request_id.encode())]
            message = {**message, "headers": headers}
        elif self._refused and not self._uploaded and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drains.drain(self._receive)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)


def answer_of(refused: Refusal) -> JSONResponse:
    """A refusal as the response that tells it."""
    return JSONResponse({"detail": refused.detail}, refused.status_code, dict(refused.headers))

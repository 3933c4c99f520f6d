"""The routes of live calls: the page's socket, and WHIP and WHEP for everybody else. docs/protocol.md has the rules."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Request, Response, WebSocket, WebSocketDisconnect
from starlette.requests import HTTPConnection

from configs.schema import ConfigError
from configs.serve import RtcArgs
from serve_app.calls import DEFAULT_MODE, LEFT, Call, Calls, End, Session, owner_of
from serve_app.errors import AtCapacity, Refused, Unavailable, refusal
from serve_app.messages import MAX_MESSAGE_BYTES, Start, Told, Wishes, parse, problem, write
from serve_app.sdp import check_offer, trickled
from webrtc.guard import Allowance
from webrtc.ice import IceServer, time_limited_credential
from webrtc.peer import MESSAGES_AT_ONCE, MESSAGES_PER_S
from webrtc.sdp import Offer

log = logging.getLogger("seedvc.rtc")

PREFIX = "/v1/rtc"
SDP_TYPE = "application/sdp"
TRICKLE_TYPE = "application/trickle-ice-sdpfrag"
MAX_UNSENT = 64
CLOSE_NORMAL, CLOSE_REFUSED, CLOSE_FAILED, CLOSE_RESTART, CLOSE_FULL = 1000, 1008, 1011, 1012, 1013
CLOSE_AFTER = {
    "shutting_down": CLOSE_RESTART,
    "conversion_failed": CLOSE_FAILED,
    "internal_error": CLOSE_FAILED,
}
"""How a socket closes after the end of its call, where that was not the usual one."""

IceServers = Callable[[], Sequence[IceServer]]
"""The STUN and TURN servers with fresh credentials."""


class Owners(Protocol):
    """The replicas that hold sessions."""

    @property
    def name(self) -> str:
        """This one."""

    async def ask(self, owner: str, method: str, *args: Any) -> Any:
        """Calls a method of that replica; of any where it is gone."""

    async def hold(self, method: str, *args: Any) -> None:
        """Calls a method of this replica, as a request that it counts."""


@dataclass(frozen=True, slots=True)
class Patch:
    """More ways to reach the client, as a WHIP client sends them."""

    if_match: str
    fragment: str


@dataclass(frozen=True, slots=True)
class Listen:
    """An offer to hear the converted side."""

    offer: Offer
    local: bool


@dataclass(frozen=True, slots=True)
class HangUp:
    """The end of a session."""

    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Find:
    """Whether a session is there, or a call that can be listened to by this id."""

    to_listen: bool = False


Wanted = Patch | Listen | HangUp | Find


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session, as its client is told."""

    session_id: str
    etag: str
    answer: str
    listen_id: str | None
    """How others listen to it; None for a listener."""


class Rtc:
    """What the routes do, wherever a session lives: here, or on another replica, which is asked by its name."""

    def __init__(self, calls: Calls, owners: Owners, ice_servers: IceServers, args: RtcArgs) -> None:
        self.calls, self.args, self.ice_servers = calls, args, ice_servers
        self._owners = owners
        self._holds: set[asyncio.Task[None]] = set()

    @property
    def hello(self) -> Told:
        """What a client needs before it calls."""
        return {
            "type": "hello",
            "ice_servers": [server.as_dict() for server in self.ice_servers()],
            "modes": self.calls.modes,
            "default_mode": DEFAULT_MODE,
        }

    async def publish(self, wishes: Wishes, offer: str, *, local: bool = False) -> Opened:
        """A call that no socket keeps: it lasts until its client or its media leave."""
        call = self.calls.start(wishes, check_offer(offer, "sendrecv"), local=local)
        await call.answered()
        # In a context of its own: Serve ties calls made in a request's context to that request.
        hold = asyncio.create_task(self._owners.hold("wait_session", call.session_id), context=Context())
        self._holds.add(hold)
        hold.add_done_callback(self._holds.discard)
        return opened(call)

    async def ask(self, session_id: str, wanted: Wanted) -> Opened | None:
        """Has the owner of a session do something to it; Refused where owner or session are gone."""
        if owner_of(session_id) == self._owners.name:
            return await self.act(session_id, wanted)
        answer: Opened | None = await self._owners.ask(owner_of(session_id), "act_on_session", session_id, wanted)
        return answer

    async def act(self, session_id: str, wanted: Wanted) -> Opened | None:
        """Does it to a session of this replica."""
        match wanted:
            case Listen():
                listener = self.calls.listen(session_id, wanted.offer, local=wanted.local)
                await listener.answered()
                return opened(listener)
            case Find():
                (self.calls.heard_as if wanted.to_listen else self.calls.find)(session_id)
            case HangUp():
                session = self.calls.find(session_id)
                session.stop(REPLACED if wanted.replaced else STOPPED)
                await session.over.wait()
            case Patch():
                session = self.calls.find(session_id)
                if wanted.if_match != session.etag:
                    message = f"If-Match is {wanted.if_match[:40]}; this session's ETag is another"
                    raise Refused(412, "precondition_failed", message)
                for candidate in trickled(wanted.fragment):
                    session.add_candidate(candidate)
        return None


STOPPED = End("stopped", "the call was ended")
REPLACED = End("replaced", "the same client called again")


def opened(session: Session) -> Opened:
    """An answered session as its client is told of it."""
    listen_id = session.listen_id if isinstance(session, Call) else None
    return Opened(session.session_id, session.etag, session.answer.result(), listen_id)


def ice_servers_of(args: RtcArgs) -> list[IceServer]:
    """The configured servers; a TURN server gets a credential that is good for a while.

    Raises:
        ConfigError: there is a TURN server, but not the secret that credentials are made of.
    """
    servers = []
    for server in args.ice_servers:
        if not server.relays:
            servers.append(IceServer(server.urls))
            continue
        secret = os.environ.get(args.turn_secret_env, "")
        if not secret:
            message = f"the TURN server {', '.join(server.urls)} needs coturn's shared secret in the environment"
            raise ConfigError(f"{message} variable {args.turn_secret_env}, which is not set")
        credential = time_limited_credential(secret, "seedvc", now_s=time.time(), valid_s=args.credential_s)
        servers.append(IceServer(server.urls, *credential))
    return servers


def own_ice_servers(args: RtcArgs) -> list[IceServer]:
    """Those that this server itself asks for an address: one that does not answer would delay each call by 5 s."""
    return ice_servers_of(args) if args.behind_nat else []


def rtc_router(rtc: Rtc) -> APIRouter:
    """All routes of calls."""
    router = APIRouter(prefix=PREFIX, tags=["live calls"])

    @router.get("/config")
    async def config() -> dict[str, Any]:
        """ICE servers with fresh credentials, and the latency modes."""
        return rtc.hello

    @router.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await SocketCall(websocket, rtc).run()

    @router.post("/whip", status_code=201, openapi_extra=_takes(SDP_TYPE), response_class=Response)
    async def publish(request: Request, wishes: Annotated[Wishes, Query()]) -> Response:
        """WHIP: an offer that sends sound; sendrecv also gets the converted sound back."""
        offer = await body_of(request, SDP_TYPE)
        return created(request, await rtc.publish(wishes, offer, local=is_local(request)), rtc.ice_servers())

    @router.post("/whep/{listen_id}", status_code=201, openapi_extra=_takes(SDP_TYPE), response_class=Response)
    async def listen(request: Request, listen_id: str) -> Response:
        """WHEP: hear the converted side of a call."""
        offer = check_offer(await body_of(request, SDP_TYPE), "sendonly")
        answer = await rtc.ask(listen_id, Listen(offer, is_local(request)))
        assert answer is not None
        return created(request, answer, rtc.ice_servers())

    @router.patch("/sessions/{session_id}", status_code=204, openapi_extra=_takes(TRICKLE_TYPE))
    async def trickle(request: Request, session_id: str) -> Response:
        """More ICE candidates of the client."""
        fragment = await body_of(request, TRICKLE_TYPE)
        if_match = request.headers.get("if-match")
        if if_match is None:
            raise Refused(428, "precondition_required", "If-Match with the session's ETag is needed")
        if if_match == "*":
            raise Refused(422, "ice_restart_unsupported", "ICE restarts are not supported; open a new session")
        await rtc.ask(session_id, Patch(if_match, fragment))
        return Response(status_code=204)

    @router.delete("/sessions/{session_id}")
    async def hang_up(session_id: str) -> Response:
        """Ends a session."""
        await rtc.ask(session_id, HangUp())
        return Response()

    async def describe(request: Request) -> Response:
        """What may be sent here; asks for no key, and tells no credentials."""
        return Response(headers={"Accept-Post": SDP_TYPE})

    async def nothing(request: Request) -> Response:
        """There is something here; what it plays is not told over HTTP."""
        for name, found in request.path_params.items():
            await rtc.ask(found, Find(to_listen=name == "listen_id"))
        return Response(status_code=204)

    for path in ("/config", "/whip", "/whep/{listen_id}", "/sessions/{session_id}"):
        router.add_api_route(path, describe, methods=["OPTIONS"], include_in_schema=False)
    for path in ("/whip", "/whep/{listen_id}", "/sessions/{session_id}"):
        router.add_api_route(path, nothing, methods=["GET", "HEAD"], include_in_schema=False)
    return router


class SocketCall:
    """One socket and its one call: when either ends, so does the other."""

    def __init__(self, websocket: WebSocket, rtc: Rtc) -> None:
        self._socket, self._rtc = websocket, rtc
        self._unsent: asyncio.Queue[str] = asyncio.Queue(MAX_UNSENT)

    async def run(self) -> None:
        """Serves the socket until its call is over."""
        writer = asyncio.create_task(self._write())
        reader: asyncio.Task[None] | None = None
        code = CLOSE_NORMAL
        try:
            self.tell(self._rtc.hello)
            call = await self._start(await self._first())
            reader = asyncio.create_task(self._read(call))
            try:
                await call.answered()
                self.tell(ready(call))
                await call.over.wait()
            finally:
                call.stop(LEFT)
            code = CLOSE_AFTER.get(call.end.result().reason, CLOSE_NORMAL)
        except WebSocketDisconnect:
            return
        except Exception as error:
            if refusal(error) is None:
                log.error("socket failed", exc_info=error)
            self.tell(problem(error))
            code = close_code(error)
        finally:
            writer.cancel()
            if reader is not None:
                reader.cancel()
        await self._flush()
        with suppress(WebSocketDisconnect, RuntimeError):  # the client may be gone
            await self._socket.close(code)

    def tell(self, message: Told) -> None:
        """Queues a message; a client that does not read loses those that find no place."""
        with suppress(asyncio.QueueFull):
            self._unsent.put_nowait(write(message))

    async def _first(self) -> Start:
        limit_s = self._rtc.args.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                message = parse(await self._text())
        except TimeoutError:
            raise Refused(408, "no_start", f"no 'start' came for {limit_s:g} s") from None
        if not isinstance(message, Start):
            raise Refused(409, "invalid_message", f"the first message is {message.type!r}; it must be 'start'")
        return message

    async def _start(self, start: Start) -> Call:
        if start.replaces is not None:
            with suppress(Refused, Unavailable):  # it has ended already, or its server has
                await self._rtc.ask(start.replaces, HangUp(replaced=True))
        offer = check_offer(start.sdp, "sendrecv")
        wishes = Wishes.model_validate(start.model_dump(include=set(Wishes.model_fields)))
        return self._rtc.calls.start(wishes, offer, self.tell, local=is_local(self._socket))

    async def _read(self, call: Call) -> None:
        """Hands on what the client says, until it leaves, which ends the call; no more than on the data channel."""
        heard, now = Allowance(MESSAGES_PER_S, MESSAGES_AT_ONCE), asyncio.get_running_loop().time
        try:
            while True:
                try:
                    text = await self._text()
                    if heard.take(now()):
                        call.hear(text, self.tell)
                except Refused as error:
                    self.tell(problem(error))
        except WebSocketDisconnect:
            call.stop(LEFT)

    async def _text(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", CLOSE_NORMAL))
        text = message.get("text")
        if text is None:
            raise Refused(415, "invalid_message", "the message is binary; messages are JSON text")
        return str(text)

    async def _write(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._socket.send_text(await self._unsent.get())

    async def _flush(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while not self._unsent.empty():
                await self._socket.send_text(self._unsent.get_nowait())


def ready(call: Call) -> Told:
    """The answer to a 'start'."""
    return {
        "type": "ready",
        "session": call.session_id,
        "listen": call.listen_id,
        "sdp": call.answer.result(),
        "settings": call.settings,
    }


def close_code(error: Exception) -> int:
    """How a socket closes after an error."""
    if isinstance(error, AtCapacity):
        return CLOSE_FULL
    return CLOSE_FAILED if refusal(error) is None else CLOSE_REFUSED


def is_local(connection: HTTPConnection) -> bool:
    """Whether a client is on this machine, as far as can be told: behind a proxy, the proxy is the client."""
    if connection.client is None or {"forwarded", "x-forwarded-for", "x-real-ip"} & set(connection.headers):
        return False
    try:
        return ip_address(connection.client.host).is_loopback
    except ValueError:
        return False


async def body_of(request: Request, media_type: str) -> str:
    """A small text body of that type."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        message = f"Content-Type is {given[:80] or 'missing'}; {media_type} is needed"
        raise Refused(415, "unsupported_media_type", message, {ACCEPT[request.method]: media_type})
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_MESSAGE_BYTES:
            raise Refused(413, "body_too_large", f"the body is larger than the limit of {MAX_MESSAGE_BYTES} bytes")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Refused(400, "invalid_body", "the body is not UTF-8 text") from None


def created(request: Request, session: Opened, ice_servers: Sequence[IceServer]) -> Response:
    """The answer to an offer over HTTP."""
    root = request.scope.get("root_path", "")
    headers = {"Location": f"{root}{PREFIX}/sessions/{session.session_id}", "ETag": session.etag}
    if session.listen_id is not None:
        headers["X-Seedvc-Listen"] = f"{root}{PREFIX}/whep/{session.listen_id}"
    response = Response(session.answer, 201, headers, SDP_TYPE)
    for link in ice_links(ice_servers):
        response.headers.append("Link", link)
    return response


def ice_links(ice_servers: Sequence[IceServer]) -> list[str]:
    """ICE servers as Link headers, one for each URL."""
    links = []
    for server in ice_servers:
        links += [f'<{url}>; rel="ice-server"{_credential(server, url)}' for url in server.urls]
    return links


def _credential(server: IceServer, url: str) -> str:
    if not url.startswith("turn"):
        return ""
    return f'; username="{server.username}"; credential="{server.credential}"; credential-type="password"'


def _takes(media_type: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": {"type": "string"}}}}}


ACCEPT: Mapping[str, str] = {"POST": "Accept-Post", "PATCH": "Accept-Patch"}

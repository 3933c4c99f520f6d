"""The routes of live calls: the page's socket, and WHIP and WHEP for everybody else. docs/protocol.md has the rules."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, WebSocket

from serve_app.calls.protocol import MAX_MESSAGE_BYTES, Wishes
from serve_app.calls.rtc import PREFIX, Find, HangUp, Listen, Opened, Patch, Rtc, is_local, key_id_of
from serve_app.calls.sdp import check_offer
from serve_app.calls.socket import SocketCall
from serve_app.errors import Refused
from webrtc.ice import IceServer

log = logging.getLogger("seedvc.rtc")

SDP_TYPE = "application/sdp"
TRICKLE_TYPE = "application/trickle-ice-sdpfrag"


def calls_router(rtc: Rtc) -> APIRouter:
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
        session = await rtc.publish(wishes, offer, local=is_local(request), key_id=key_id_of(request))
        return created(request, session, rtc.ice_servers())

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
        """The type of a body that may be posted here. Asks for no key and shows no credentials."""
        return Response(headers={"Accept-Post": SDP_TYPE})

    async def nothing(request: Request) -> Response:
        """The session exists."""
        for name, found in request.path_params.items():
            await rtc.ask(found, Find(to_listen=name == "listen_id"))
        return Response(status_code=204)

    for path in ("/config", "/whip", "/whep/{listen_id}", "/sessions/{session_id}"):
        router.add_api_route(path, describe, methods=["OPTIONS"], include_in_schema=False)
    for path in ("/whip", "/whep/{listen_id}", "/sessions/{session_id}"):
        router.add_api_route(path, nothing, methods=["GET", "HEAD"], include_in_schema=False)
    return router


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

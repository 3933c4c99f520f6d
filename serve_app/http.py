"""The HTTP face of the service: voices, models, health, and the app that the conversion routes hang in.

Request, response and error shapes follow the ElevenLabs API, so that its SDKs work with a changed base URL.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field, Json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import webrtc
from serve_app.errors import ClientGone, FieldProblem, InvalidFields, Refusal, internal_error, refusal
from serve_app.messages import problem, write
from serve_app.rtc import Cors, Rtc, close_code, rtc_router
from serve_app.service import MODEL_IDS, Service
from serve_app.speech import form_schema, header, one_line, parse_fields, speech_router
from serve_app.stores.voices import VoiceRecord
from serve_app.uploads import Backlog, MultipartForm, incoming
from stages.types import BadAudio
from webrtc.files import NotAudio

log = logging.getLogger("seedvc.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DRAIN_S = 5.0
PAGE_FOLDER = Path(webrtc.__file__).parent / "page"


class VoiceForm(BaseModel):
    """The form fields of a new voice, beside its recordings."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: Annotated[str, Field(max_length=500)] | None = None
    labels: Json[dict[str, str]] = Field(default_factory=dict)
    remove_background_noise: bool = False


class VoiceQuery(BaseModel):
    """Which voices to list, in what order, and which page of them; filters that no voice here has are ignored."""

    page_size: Annotated[int, Field(ge=1, le=100)] = 10
    next_page_token: str | None = None
    search: str | None = None
    sort: Literal["created_at_unix", "name"] = "created_at_unix"
    sort_direction: Literal["asc", "desc"] = "desc"
    category: str | None = None
    voice_ids: list[str] | None = None


def create_app(service: Service, rtc: Rtc | None = None) -> FastAPI:
    """The whole HTTP app around one service, with live calls and their page where there are any."""
    app = FastAPI(title="seedvc-serve", description="Speak, and be heard in another voice.", version="1")
    app.include_router(speech_router(service), prefix="/v1")
    app.include_router(_voices_router(service))
    app.include_router(_models_router(), prefix="/v1")
    app.include_router(_health_router(service))
    if rtc is not None:
        app.include_router(rtc_router(rtc))
        if rtc.args.page:
            add_page(app)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_middleware(Edge)
    app.add_middleware(Cors)
    return app


def add_page(app: FastAPI, folder: Path = PAGE_FOLDER) -> None:
    """Serves the files of the page, its index at `/`. Each has a route: unknown paths stay the API's to refuse."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()

        app.add_route("/" if name == "index.html" else f"/{name}", _page_file(path), methods=["GET", "HEAD"])


def _page_file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})  # a new version is seen at once

    return serve


class Edge:
    """The outermost layer: names the request, and makes every error an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; a failure of ours is logged once, and told without its inside."""
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_id = header(scope, b"x-request-id")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = Exchange(receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            log.info("client hung up", extra={"request_id": request_id})
        except Exception as error:
            known = refusal(error)
            if known is None:
                log.error("request failed", exc_info=error, extra={"request_id": request_id})
            if not exchange.started:
                await _answer(known or internal_error(request_id))(scope, exchange.receive, exchange.send)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A socket's own handler tells its errors; what is left becomes an `error` message, and closes the socket."""
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
    """One request and its answer. A refusal holds its end back until the client has sent what it was sending.

    A server closes the connection on an answer that ends before the upload, and a client that is still writing then
    sees a broken pipe in place of the refusal.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._uploaded = False
        self._refused = False
        self.started = False

    async def receive(self) -> Message:
        """The next message of the client."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._uploaded = True
        return message

    async def send(self, message: Message) -> None:
        """Sends one message of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            self._refused = message["status"] >= 400
        elif self._refused and not self._uploaded and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while not self._uploaded:
                    await self.receive()


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return _answer(Refusal(error.status_code, {"status": status, "message": str(error.detail)}, error.headers or {}))


async def _answer_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [FieldProblem(tuple(p["loc"]), p["msg"], p["type"]) for p in error.errors()]
    known = refusal(InvalidFields(problems))
    assert known is not None
    return _answer(known)


def _answer(refused: Refusal) -> JSONResponse:
    return JSONResponse({"detail": refused.detail}, refused.status_code, dict(refused.headers))


def _voices_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["voices"])
    voices, limits = service.voices, service.limits

    @router.post("/v1/voices/add", openapi_extra=form_schema(VoiceForm, files=_FILES_SCHEMA))
    async def add_voice(request: Request) -> JSONResponse:
        """Make a voice from one or more recordings of one speaker."""
        async with (
            incoming(request.receive, limits.max_upload_bytes, limits.max_upload_pause_s) as body,
            AsyncExitStack() as stack,
        ):
            texts: dict[str, str] = {}
            files: list[Backlog] = []
            async for part in MultipartForm(header(request.scope, b"content-type"), body.chunks()).parts():
                if part.name in ("files", "files[]"):
                    files.append(Backlog())
                    stack.callback(files[-1].close)
                    async for data in part.chunks():
                        files[-1].put(data)
                else:
                    texts[part.name] = await part.text()
            if not files:
                raise InvalidFields([FieldProblem(("body", "files"), "Field required", "missing")])
            form = parse_fields(VoiceForm, texts)
            uploads = [file.chunks() for file in files]
            try:
                record, warnings = await service.add_voice(
                    form.name, uploads, form.description, form.labels, form.remove_background_noise
                )
            except (BadAudio, NotAudio) as error:
                raise InvalidFields([FieldProblem(("body", "files"), str(error), error.reason)]) from error
        answer = JSONResponse(
            {"voice_id": record.voice_id, "requires_verification": False, "reference": record.reference}
        )
        for warning in warnings:
            answer.headers.append("X-Seedvc-Warning", one_line(warning))
        return answer

    @router.get("/v1/voices")
    async def list_voices(show_legacy: bool = False) -> dict[str, Any]:
        """All voices."""
        return {"voices": [_described(record) for record in await asyncio.to_thread(voices.list)]}

    @router.get("/v2/voices")
    async def search_voices(query: Annotated[VoiceQuery, Query()]) -> dict[str, Any]:
        """The voices that match, page by page."""
        matching = _matching(await asyncio.to_thread(voices.list), query)
        start = 0
        if query.next_page_token is not None:
            ids = [record.voice_id for record in matching]
            if query.next_page_token not in ids:
                raise InvalidFields([FieldProblem(("query", "next_page_token"), "unknown page token", "value_error")])
            start = ids.index(query.next_page_token)
        page, rest = matching[start : start + query.page_size], matching[start + query.page_size :]
        return {
            "voices": [_described(record) for record in page],
            "has_more": bool(rest),
            "total_count": len(matching),
            "next_page_token": rest[0].voice_id if rest else None,
        }

    @router.get("/v1/voices/settings/default")
    async def default_settings() -> dict[str, Any]:
        """Fixed: a voice has no settings here."""
        return _SETTINGS

    @router.get("/v1/voices/{voice_id}")
    async def get_voice(voice_id: str, with_settings: bool = True) -> dict[str, Any]:
        """One voice."""
        return _described(await asyncio.to_thread(voices.get, voice_id))

    @router.get("/v1/voices/{voice_id}/settings")
    async def voice_settings(voice_id: str) -> dict[str, Any]:
        """Fixed: a voice has no settings here."""
        await asyncio.to_thread(voices.get, voice_id)
        return _SETTINGS

    @router.delete("/v1/voices/{voice_id}")
    async def delete_voice(voice_id: str) -> dict[str, str]:
        """Forget a voice, its recording and what was made from it."""
        await asyncio.to_thread(voices.delete, voice_id)
        return {"status": "ok"}

    return router


def _models_router() -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models")
    async def list_models() -> list[dict[str, Any]]:
        """The one model, under each name that a client may call it by."""
        return [
            {
                "model_id": model_id,
                "name": "Seed-VC",
                "description": "Zero-shot voice conversion",
                "can_do_voice_conversion": True,
                "can_do_text_to_speech": False,
            }
            for model_id in MODEL_IDS
        ]

    return router


def _health_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """A conversion sent now would be taken: the voice store answers, and there is room."""
        await asyncio.to_thread(service.voices.list)
        service.require_room()
        return {"status": "ready"}

    return router


def _matching(records: list[VoiceRecord], query: VoiceQuery) -> list[VoiceRecord]:
    """The voices that a query asks for, in its order."""
    wanted = [
        record
        for record in records
        if (query.category is None or record.category == query.category)
        and (query.voice_ids is None or record.voice_id in query.voice_ids)
        and (query.search is None or query.search.casefold() in _searchable(record))
    ]
    by_name = query.sort == "name"
    return sorted(
        wanted,
        key=lambda record: (record.name.casefold() if by_name else record.created_at_unix, record.voice_id),
        reverse=query.sort_direction == "desc",
    )


def _searchable(record: VoiceRecord) -> str:
    return " ".join([record.name, record.description or "", *record.labels.values()]).casefold()


def _described(record: VoiceRecord) -> dict[str, Any]:
    """A voice as the ElevenLabs API describes one."""
    return {
        "voice_id": record.voice_id,
        "name": record.name,
        "category": record.category,
        "description": record.description,
        "labels": dict(record.labels),
        "samples": [],
        "preview_url": None,
        "available_for_tiers": [],
        "settings": _SETTINGS,
        "high_quality_base_model_ids": list(MODEL_IDS),
        "created_at_unix": record.created_at_unix,
        "is_owner": record.category == "cloned",
        "is_legacy": False,
        "reference": record.reference,
    }


_SETTINGS: dict[str, Any] = {
    "stability": 0.5,
    "similarity_boost": 0.75,
    "style": 0.0,
    "use_speaker_boost": False,
    "speed": 1.0,
}
_FILES_SCHEMA = {"type": "array", "items": {"type": "string", "format": "binary"}}

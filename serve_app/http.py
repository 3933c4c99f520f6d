"""The HTTP face of the service: voices, models, health, and the app that the conversion routes hang in.

Request, response and error shapes follow the ElevenLabs API, so that its SDKs work with a changed base URL.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import fastapi_offline
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, Field, Json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import webrtc
from configs.serve import RtcArgs
from serve_app.access import Access, Guard
from serve_app.admission import Admission
from serve_app.edge import Edge, SafetyHeaders, answer_of
from serve_app.errors import BadUpload, FieldProblem, InvalidFields, Refusal, refusal
from serve_app.names import lines_only, seen_only
from serve_app.readiness import Ask, Readiness
from serve_app.rtc import Rtc, rtc_router
from serve_app.service import LEAST_EXPIRY_S, MODEL_IDS, MOST_EXPIRY_S, Service
from serve_app.speech import form_schema, header, one_line, parse_fields, speech_router
from serve_app.stores.voices import VoiceRecord
from serve_app.uploads import MAX_FIELD_BYTES, MEMORY_BYTES, Backlog, MultipartForm, incoming
from stages.types import BadAudio
from webrtc.files import NotAudio

MAX_FILES = 25
"""Recordings of one voice."""
FILE_FIELDS = ("files", "files[]")
PAGE_FOLDER = Path(webrtc.__file__).parent / "page"
DOCS_FOLDER = Path(__file__).parent / "docs"
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob: mediastream:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What the page may load, and that no other may frame it."""
DOCS = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The same for the description of the API, whose library styles its elements."""
EXPOSED = [
    "X-Seedvc-Seed", "X-Seedvc-Warning", "X-Seedvc-Listen", "Request-Id", "Location", "ETag", "Link", "Retry-After",
    "Accept-Post", "Accept-Patch",
]  # fmt: skip
"""What pages of the configured origins may read of an answer's headers."""


def without_null(labels: dict[str, str | None]) -> dict[str, str]:
    """The labels that have a value; for pydantic."""
    return {name: text for name, text in labels.items() if text is not None}


VoiceName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(seen_only)]
VoiceDescription = Annotated[str, Field(max_length=500), AfterValidator(lines_only)]
LabelName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(seen_only)]
LabelText = Annotated[str, Field(max_length=500), AfterValidator(seen_only)]
Labels = Annotated[
    Json[Annotated[dict[LabelName, LabelText | None], Field(max_length=50)]], AfterValidator(without_null)
]


class VoiceForm(BaseModel):
    """The form fields of a new voice, beside its recordings."""

    name: VoiceName
    description: VoiceDescription | None = None
    labels: Labels = Field(default_factory=dict)
    remove_background_noise: bool = False
    expires_s: Annotated[int, Field(ge=LEAST_EXPIRY_S, le=MOST_EXPIRY_S)] | None = None
    """Where given, the voice is forgotten when nothing has used it for so long."""


class VoiceEdit(BaseModel):
    """The form fields that change a voice; what is not given stays."""

    name: VoiceName | None = None
    description: VoiceDescription | None = None
    labels: Labels | None = None
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


def create_app(
    service: Service,
    rtc: Rtc | None = None,
    access: Access | None = None,
    stages: Mapping[str, Ask] | None = None,
) -> FastAPI:
    """The whole HTTP app around one service, with live calls and their page where there are any.

    Without `access`, it is for callers on this machine. `stages` asks those behind it, by name, for a sign of life.
    """
    access = access or Access()
    app = FastAPI(
        title="seedvc-serve",
        description="Speak, and be heard in another voice.",
        version="1",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(speech_router(service), prefix="/v1")
    app.include_router(_voices_router(service))
    app.include_router(_models_router(), prefix="/v1")
    app.include_router(_user_router(service), prefix="/v1")
    app.include_router(_health_router(service, rtc, stages or {}))
    public = add_docs(app)
    if rtc is not None:
        app.include_router(rtc_router(rtc))
        if rtc.args.page:
            public |= add_page(app)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    max_waiting = (RtcArgs() if rtc is None else rtc.args).max_waiting
    app.add_middleware(Admission, limits=service.limits, max_waiting=max_waiting)
    app.add_middleware(Guard, access=access, public=frozenset(public))
    app.add_middleware(Edge)
    app.add_middleware(SafetyHeaders)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"],
            allow_headers=["*"],  # xi-api-key, and what SDKs add to say which they are
            allow_private_network=True,  # a page on the web, a server on this machine: the config says so
            expose_headers=EXPOSED,
        )
    return app


def add_page(app: FastAPI, folder: Path = PAGE_FOLDER) -> set[str]:
    """Serves the files of the page, its index at `/`; the paths. Unknown paths stay the API's to refuse."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return _add_files(app, {"/" if name == "index.html" else f"/{name}": path for name, path in files.items()}, PAGE)


def add_docs(app: FastAPI) -> set[str]:
    """Serves the description of the API for people, with nothing from elsewhere; the paths."""
    swagger = Path(fastapi_offline.__file__).parent / "static"
    files = {"/docs": DOCS_FOLDER / "index.html", "/docs/docs.js": DOCS_FOLDER / "docs.js"}
    files |= {f"/docs/{name}": swagger / name for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon.png")}
    return _add_files(app, files, DOCS)


def _add_files(app: FastAPI, files: Mapping[str, Path], policy: str) -> set[str]:
    for url, path in files.items():
        app.add_route(url, _file(path, policy), methods=["GET", "HEAD"])
    return set(files)


def _file(path: Path, policy: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}  # a new version is seen at once

    async def serve(request: Request) -> Response:
        return FileResponse(path, headers=headers)

    return serve


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = str(error.detail)
    if error.status_code in (404, 405) and _NOT_OFFERED.match(request.url.path):
        message = f"{request.method} {request.url.path[:80]} is not offered; {_OFFERED}"
    return answer_of(Refusal(error.status_code, {"status": status, "message": message}, error.headers or {}))


async def _answer_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [FieldProblem(tuple(p["loc"]), p["msg"], p["type"]) for p in error.errors()]
    known = refusal(InvalidFields(problems))
    assert known is not None
    return answer_of(known)


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
                if part.name in FILE_FIELDS:
                    if len(files) == MAX_FILES:
                        message = f"a voice is made of at most {MAX_FILES} recordings"
                        raise InvalidFields([FieldProblem(("body", "files"), message, "too_many")])
                    files.append(Backlog(MEMORY_BYTES // MAX_FILES))
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
                    form.name,
                    uploads,
                    form.description,
                    form.labels,
                    expires_s=form.expires_s,
                    remove_noise=form.remove_background_noise,
                )
            except (BadAudio, NotAudio) as error:
                raise InvalidFields([FieldProblem(("body", "files"), str(error), error.reason)]) from error
        answer = JSONResponse(
            {"voice_id": record.voice_id, "requires_verification": False, "reference": record.reference}
        )
        for warning in warnings:
            answer.headers.append("X-Seedvc-Warning", one_line(warning))
        return answer

    @router.post("/v1/voices/{voice_id}/edit", openapi_extra=form_schema(VoiceEdit))
    async def edit_voice(request: Request, voice_id: str) -> dict[str, str]:
        """Change the name, the description or the labels of a voice; its recordings stay as they are."""
        await asyncio.to_thread(voices.get, voice_id)  # before the form is taken
        texts: dict[str, str] = {}
        async with incoming(request.receive, limits.max_upload_bytes, limits.max_upload_pause_s) as body:
            async for part in MultipartForm(header(request.scope, b"content-type"), body.chunks()).parts():
                if part.name in FILE_FIELDS:
                    message = "the recordings of a voice cannot be changed; add a new voice with POST /v1/voices/add"
                    raise InvalidFields([FieldProblem(("body", "files"), message, "not_offered")])
                texts[part.name] = await part.text()
            form = parse_fields(VoiceEdit, texts)
            changes = form.model_dump(include={"name", "description", "labels"}, exclude_none=True)
            await asyncio.to_thread(voices.update, voice_id, changes)
        return {"status": "ok"}

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

    @router.post("/v1/voices/{voice_id}/settings/edit")
    async def edit_settings(request: Request, voice_id: str) -> JSONResponse:
        """Accepted and not kept: a voice has no settings here, which a warning tells."""
        await asyncio.to_thread(voices.get, voice_id)
        await _read_json(request)
        warning = "the settings of a voice are not supported and were ignored"
        return JSONResponse({"status": "ok"}, headers={"X-Seedvc-Warning": warning})

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


def _user_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["user"])

    async def subscription() -> dict[str, Any]:
        """Fixed but for the number of voices: nobody is counted or charged here."""
        records = await asyncio.to_thread(service.voices.list)
        return _SUBSCRIPTION | {"voice_slots_used": sum(record.category == "cloned" for record in records)}

    async def user() -> dict[str, Any]:
        """Fixed: there are no accounts here."""
        return _USER | {"subscription": await subscription()}

    router.add_api_route("/user", user, methods=["GET"])
    router.add_api_route("/user/subscription", subscription, methods=["GET"])
    return router


async def _read_json(request: Request) -> Any:
    """A small JSON body."""
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > MAX_FIELD_BYTES:
            raise BadUpload(f"the body is larger than {MAX_FIELD_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadUpload("the body is no JSON") from None


def _health_router(service: Service, rtc: Rtc | None, stages: Mapping[str, Ask]) -> APIRouter:
    router = APIRouter(tags=["health"])
    asks: dict[str, Ask] = {"the voice store": partial(asyncio.to_thread, service.voices.list), **stages}
    readiness = Readiness(asks, lambda: rtc is not None and rtc.calls.is_retiring)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """The voice store and the stages answer, and this server stays: else 503, with the reasons.

        What has no room for one more now is in `full`, and is no reason: it is at work. Answers count for 2 s, so this
        may be asked often.
        """
        if reasons := await readiness.reasons():
            detail = {"status": "not_ready", "message": "; ".join(reasons), "reasons": reasons}
            return JSONResponse({"detail": detail}, 503)
        full = {"conversions": service.is_full, "calls": rtc is not None and rtc.calls.is_full}
        return JSONResponse({"status": "ready", "full": [what for what, is_full in full.items() if is_full]})

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


_OFFERED = (
    "this service converts speech (POST /v1/speech-to-speech/{voice_id}), keeps the voices for that (/v1/voices) and "
    "holds calls (/v1/rtc/ws)"
)
_NOT_OFFERED = re.compile(
    r"/v[12]/(audio-|convai|dubbing|environment-|flows|forced-|history|models|music|productions|projects|"
    r"pronunciation-|service-accounts|shared-voices|similar-voices|single-use-token|sound-generation|speech-|studio|"
    r"text-to-|tokens|usage|user|voice|webhooks|workspace)"
)
"""Where the ElevenLabs API has routes: what is not found there is told apart from a mistyped path."""
_SUBSCRIPTION: dict[str, Any] = {
    "tier": "self_hosted",
    "status": "active",
    "character_count": 0,
    "character_limit": 2**31 - 1,
    "max_character_limit_extension": None,
    "max_credit_limit_extension": "unlimited",
    "can_extend_character_limit": False,
    "allowed_to_extend_character_limit": False,
    "next_character_count_reset_unix": None,
    "voice_slots_used": 0,
    "professional_voice_slots_used": 0,
    "professional_voice_slots_used_in_workspace": 0,
    "voice_limit": 2**31 - 1,
    "max_voice_add_edits": None,
    "voice_add_edit_counter": 0,
    "professional_voice_limit": 0,
    "can_extend_voice_limit": False,
    "can_use_instant_voice_cloning": True,
    "can_use_professional_voice_cloning": False,
    "currency": "usd",
    "current_overage": {"amount": "0", "currency": "usd"},
    "billing_period": None,
    "character_refresh_period": None,
    "open_invoices": [],
    "has_open_invoices": False,
}
_USER: dict[str, Any] = {
    "user_id": "self_hosted",
    "workspace_id": "self_hosted",
    "first_name": None,
    "is_new_user": False,
    "can_use_delayed_payment_methods": False,
    "is_onboarding_completed": True,
    "is_onboarding_checklist_completed": True,
    "created_at": 0,
    "seat_type": "workspace_admin",
}
_SETTINGS: dict[str, Any] = {
    "stability": 0.5,
    "similarity_boost": 0.75,
    "style": 0.0,
    "use_speaker_boost": False,
    "speed": 1.0,
}
_FILES_SCHEMA = {"type": "array", "items": {"type": "string", "format": "binary"}}

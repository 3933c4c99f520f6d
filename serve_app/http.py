"""The HTTP face of the service: voices, models, health, and the app that the conversion routes hang in.

Request, response and error shapes follow the ElevenLabs API, so that its SDKs work with a changed base URL.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import webrtc
from configs.serve import RtcArgs
from serve_app.access import Access, Guard
from serve_app.admission import Admission
from serve_app.callers.counts import tomorrow_unix
from serve_app.callers.ring import caller_of
from serve_app.calls.routes import calls_router
from serve_app.calls.rtc import Rtc
from serve_app.edge import Edge, SafetyHeaders, answer_of
from serve_app.errors import FieldProblem, InvalidFields, Refusal, refusal
from serve_app.forms import MODEL_IDS
from serve_app.readiness import Ask, Readiness
from serve_app.recordings.routes import recordings_router
from serve_app.recordings.service import Recordings
from serve_app.voices.routes import voices_router
from serve_app.voices.service import Voices

CHARACTERS_PER_MINUTE = 1000
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


def create_app(
    recordings: Recordings,
    rtc: Rtc | None = None,
    access: Access | None = None,
    stages: Mapping[str, Ask] | None = None,
) -> FastAPI:
    """The whole HTTP app around conversions and voices, with live calls and their page where there are any.

    Without `access`, only this machine may call. `stages` holds, by name, how to ask each stage for a sign of life.
    """
    access = access or Access()
    app = FastAPI(
        title="seedvc-serve",
        description="Speak, and be heard in another voice.",
        version="1",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(recordings_router(recordings), prefix="/v1")
    app.include_router(voices_router(recordings.voices, consent_required=access.consent_required))
    app.include_router(_models_router(recordings), prefix="/v1")
    app.include_router(_user_router(recordings.voices), prefix="/v1")
    app.include_router(_health_router(recordings, rtc, stages or {}))
    public = add_docs(app)
    if rtc is not None:
        app.include_router(calls_router(rtc))
        if rtc.args.page:
            public |= add_page(app)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    max_waiting = (RtcArgs() if rtc is None else rtc.args).max_waiting
    app.add_middleware(Admission, limits=recordings.limits, max_waiting=max_waiting)
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
    """Serves the files of the page, its index at `/`, and returns their paths. The API refuses unknown paths."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return _add_files(app, {"/" if name == "index.html" else f"/{name}": path for name, path in files.items()}, PAGE)


def add_docs(app: FastAPI) -> set[str]:
    """Serves the description of the API for people, all from this server, and returns the paths."""
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


def _models_router(recordings: Recordings) -> APIRouter:
    router = APIRouter(tags=["models"])
    limits = recordings.limits
    taken = {
        "max_source_s": limits.max_source_s,
        "max_upload_bytes": limits.max_upload_bytes,
        "steps": recordings.streams.recording_steps,
    }

    @router.get("/models")
    async def list_models() -> list[dict[str, Any]]:
        """The one model, under each name that a client may call it by.

        `recordings` says what one conversion takes, and its usual steps: `null` where any number is rendered in one.
        """
        return [
            {
                "model_id": model_id,
                "name": "Seed-VC",
                "description": "Zero-shot voice conversion",
                "can_do_voice_conversion": True,
                "can_do_text_to_speech": False,
                "recordings": taken,
            }
            for model_id in MODEL_IDS
        ]

    return router


def _user_router(voices: Voices) -> APIRouter:
    router = APIRouter(tags=["user"])

    async def subscription(request: Request) -> dict[str, Any]:
        """What the caller's key may use and has used today; without a key of their own, only voices are counted.

        ElevenLabs counts characters, and a minute of converted speech as 1000.
        """
        caller = caller_of(request.scope)
        usage = await caller.usage()
        told = _SUBSCRIPTION | {"voice_slots_used": await voices.count_own(caller)}
        if caller.key_id is None:
            return told
        told["character_count"] = round(usage.call_s / 60 * CHARACTERS_PER_MINUTE)
        told["next_character_count_reset_unix"] = tomorrow_unix()
        if caller.most_minutes is not None:
            told["character_limit"] = caller.most_minutes * CHARACTERS_PER_MINUTE
        if caller.most_voices is not None:
            told["voice_limit"] = caller.most_voices
        return told | {"usage": {"call_seconds": round(usage.call_s, 1), "upload_bytes": usage.upload_bytes}}

    async def user(request: Request) -> dict[str, Any]:
        """Who calls, by the id of their key."""
        caller = caller_of(request.scope)
        return _USER | {"user_id": caller.key_id or _USER["user_id"], "subscription": await subscription(request)}

    @router.post("/single-use-token/{token_type}")
    async def single_use_token(request: Request, token_type: Literal["call"]) -> dict[str, str]:
        """A token for a page that must not know the key: good for one call, as access_token, within 15 minutes."""
        return {"token": caller_of(request.scope).token()}

    router.add_api_route("/user", user, methods=["GET"])
    router.add_api_route("/user/subscription", subscription, methods=["GET"])
    return router


def _health_router(recordings: Recordings, rtc: Rtc | None, stages: Mapping[str, Ask]) -> APIRouter:
    router = APIRouter(tags=["health"])
    asks: dict[str, Ask] = {"the voice store": partial(asyncio.to_thread, recordings.voices.store.check), **stages}
    readiness = Readiness(asks, lambda: rtc is not None and rtc.calls.is_retiring)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """503 with reasons where the store or a stage does not answer or the server goes; else 200.

        `full` lists what has no room now, `away` what the service does without. Answers count for 2 s, so this may be
        asked often.
        """
        if reasons := await readiness.reasons():
            detail = {"status": "not_ready", "message": "; ".join(reasons), "reasons": reasons}
            return JSONResponse({"detail": detail}, 503)
        full = {"conversions": recordings.is_full, "calls": rtc is not None and rtc.calls.is_full}
        told: dict[str, Any] = {"status": "ready", "full": [what for what, is_full in full.items() if is_full]}
        if rtc is not None and rtc.calls.records.is_away:
            told["away"] = ["the session store"]
        return JSONResponse(told)

    return router


_OFFERED = (
    "this service converts speech (POST /v1/speech-to-speech/{voice_id}), keeps the voices for that (/v1/voices) and "
    "holds calls (/v1/rtc/ws)"
)
_NOT_OFFERED = re.compile(
    r"/v[12]/(audio-|convai|dubbing|environment-|flows|forced-|history|models|music|productions|projects|"
    r"pronunciation-|service-accounts|shared-voices|similar-voices|sound-generation|speech-|studio|"
    r"text-to-|tokens|usage|user|voice|webhooks|workspace)"
)
"""Where the ElevenLabs API has routes. The refusal of these is another than that of a mistyped path."""
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

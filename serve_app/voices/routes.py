"""The routes of voices: make, list, search, rename, forget. Shapes follow the ElevenLabs API."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import AfterValidator, BaseModel, Field, Json

from serve_app.callers.ring import Caller, caller_of
from serve_app.errors import BadUpload, FieldProblem, InvalidFields, Refused
from serve_app.forms import MODEL_IDS, form_schema, header, one_line, parse_fields
from serve_app.names import lines_only, seen_only
from serve_app.uploads import MAX_FIELD_BYTES, MEMORY_BYTES, Backlog, MultipartForm, incoming
from serve_app.voices.service import LEAST_EXPIRY_S, MOST_EXPIRY_S, Voices
from serve_app.voices.store import VoiceRecord
from stages.types import BadAudio
from webrtc.files import NotAudio

MAX_FILES = 25
"""Recordings of one voice."""
FILE_FIELDS = ("files", "files[]")
SAMPLE_ID = "reference"
"""The id of a voice's one recording."""


def without_null(labels: dict[str, str | None]) -> dict[str, str]:
    """The labels that have a value; for pydantic."""
    return {name: text for name, text in labels.items() if text is not None}


VoiceName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(seen_only)]
VoiceDescription = Annotated[str, Field(max_length=500), AfterValidator(lines_only)]
Consent = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(lines_only)]
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
    """The voice is forgotten after `expires_s` seconds without use."""
    consent: Consent | None = None
    """What the speaker agreed to, in words; kept with the voice."""


class VoiceEdit(BaseModel):
    """The form fields that change a voice. Fields that are not given stay."""

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


def voices_router(voices: Voices, *, consent_required: bool = False) -> APIRouter:
    """All routes of voices."""
    router = APIRouter(tags=["voices"])
    store, limits = voices.store, voices.limits

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
            if consent_required and form.consent is None:
                raise InvalidFields([FieldProblem(("body", "consent"), _NO_CONSENT, "missing")])
            uploads = [file.chunks() for file in files]
            try:
                record, warnings = await voices.add(
                    form.name,
                    uploads,
                    form.description,
                    form.labels,
                    expires_s=form.expires_s,
                    remove_noise=form.remove_background_noise,
                    caller=caller_of(request.scope),
                    consent=form.consent,
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
        await voices.own(voice_id, caller_of(request.scope))  # before the form is taken
        texts: dict[str, str] = {}
        async with incoming(request.receive, limits.max_upload_bytes, limits.max_upload_pause_s) as body:
            async for part in MultipartForm(header(request.scope, b"content-type"), body.chunks()).parts():
                if part.name in FILE_FIELDS:
                    message = "the recordings of a voice cannot be changed; add a new voice with POST /v1/voices/add"
                    raise InvalidFields([FieldProblem(("body", "files"), message, "not_offered")])
                texts[part.name] = await part.text()
            form = parse_fields(VoiceEdit, texts)
            changes = form.model_dump(include={"name", "description", "labels"}, exclude_none=True)
            await asyncio.to_thread(store.update, voice_id, changes)
        return {"status": "ok"}

    @router.get("/v1/voices")
    async def list_voices(request: Request, show_legacy: bool = False) -> dict[str, Any]:
        """All voices."""
        caller = caller_of(request.scope)
        return {"voices": [_described(record, caller) for record in await voices.listed(caller)]}

    @router.get("/v2/voices")
    async def search_voices(request: Request, query: Annotated[VoiceQuery, Query()]) -> dict[str, Any]:
        """The voices that match, page by page."""
        caller = caller_of(request.scope)
        matching = _matching(await voices.listed(caller), query)
        start = 0
        if query.next_page_token is not None:
            ids = [record.voice_id for record in matching]
            if query.next_page_token not in ids:
                raise InvalidFields([FieldProblem(("query", "next_page_token"), "unknown page token", "value_error")])
            start = ids.index(query.next_page_token)
        page, rest = matching[start : start + query.page_size], matching[start + query.page_size :]
        return {
            "voices": [_described(record, caller) for record in page],
            "has_more": bool(rest),
            "total_count": len(matching),
            "next_page_token": rest[0].voice_id if rest else None,
        }

    @router.get("/v1/voices/settings/default")
    async def default_settings() -> dict[str, Any]:
        """Fixed: a voice has no settings here."""
        return _SETTINGS

    @router.get("/v1/voices/{voice_id}")
    async def get_voice(request: Request, voice_id: str, with_settings: bool = True) -> dict[str, Any]:
        """One voice."""
        caller = caller_of(request.scope)
        return _described(await voices.found(voice_id, caller), caller)

    @router.get("/v1/voices/{voice_id}/settings")
    async def voice_settings(request: Request, voice_id: str) -> dict[str, Any]:
        """Fixed: a voice has no settings here."""
        await voices.found(voice_id, caller_of(request.scope))
        return _SETTINGS

    @router.post("/v1/voices/{voice_id}/settings/edit")
    async def edit_settings(request: Request, voice_id: str) -> JSONResponse:
        """Accepted and not kept: a voice has no settings here, which a warning tells."""
        await voices.own(voice_id, caller_of(request.scope))
        await _read_json(request)
        warning = "the settings of a voice are not supported and were ignored"
        return JSONResponse({"status": "ok"}, headers={"X-Seedvc-Warning": warning})

    @router.get("/v1/voices/{voice_id}/samples/{sample_id}/audio", response_class=Response)
    async def sample_audio(request: Request, voice_id: str, sample_id: str) -> Response:
        """The recording that a voice was made of, or a redirection to where the store has it."""
        if sample_id != SAMPLE_ID:
            message = f"there is no sample {sample_id[:80]!r}; the one of each voice is {SAMPLE_ID!r}"
            raise Refused(404, "sample_not_found", message)
        await voices.found(voice_id, caller_of(request.scope))
        original = await asyncio.to_thread(store.original, voice_id)
        headers = {"Cache-Control": "no-store"}
        if original.url is not None:
            return RedirectResponse(original.url, 307, headers)
        return Response(original.data, media_type=original.media_type, headers=headers)

    @router.delete("/v1/voices/{voice_id}")
    async def delete_voice(request: Request, voice_id: str) -> dict[str, str]:
        """Forget a voice, its recording and what was made from it."""
        if (caller := caller_of(request.scope)).key_id is not None:  # the operator removes damaged ones too
            await voices.own(voice_id, caller)
        await asyncio.to_thread(store.delete, voice_id)
        return {"status": "ok"}

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


def _described(record: VoiceRecord, caller: Caller) -> dict[str, Any]:
    """A voice as the ElevenLabs API describes one."""
    return {
        "voice_id": record.voice_id,
        "name": record.name,
        "category": record.category,
        "description": record.description,
        "labels": dict(record.labels),
        "samples": [{"sample_id": SAMPLE_ID, "duration_secs": record.duration_s}],
        "preview_url": None,
        "available_for_tiers": [],
        "settings": _SETTINGS,
        "high_quality_base_model_ids": list(MODEL_IDS),
        "created_at_unix": record.created_at_unix,
        "is_owner": record.category == "cloned" and caller.owns(record.owner),
        "is_legacy": False,
        "reference": record.reference,
    }


_NO_CONSENT = (
    "this server keeps a statement that the speaker agreed to the voice: send it in words, in the field consent"
)
_SETTINGS: dict[str, Any] = {
    "stability": 0.5,
    "similarity_boost": 0.75,
    "style": 0.0,
    "use_speaker_boost": False,
    "speed": 1.0,
}
_FILES_SCHEMA = {"type": "array", "items": {"type": "string", "format": "binary"}}

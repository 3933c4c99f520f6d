"""The conversion routes: a form with a recording comes in, the recording in another voice goes out.

`/stream` answers while the upload is still coming, so there the form is read in order and the recording is converted
as it arrives. The plain route takes the whole form first, in any order, and answers when all is known: exact sizes,
all warnings, a status code that is true.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, Field, Json, ValidationError, WithJsonSchema
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.conversion import Conversion
from serve_app.errors import ClientGone, FieldProblem, InvalidFields, refusal
from serve_app.service import DEFAULT_OUTPUT_FORMAT, MAX_SEED, MODEL_IDS, Service
from serve_app.uploads import Backlog, MultipartForm, Part, incoming
from webrtc.files import OUTPUT_FORMATS

log = logging.getLogger("seedvc.http")

_SPOOL_MEMORY_BYTES = 1 << 22
_SEND_BYTES = 1 << 16


def known_model(model_id: str) -> str:
    """The id itself where it names the model; for pydantic."""
    if model_id not in MODEL_IDS:
        raise ValueError(f"unknown model; allowed are {', '.join(MODEL_IDS)}")
    return model_id


def known_format(name: str) -> str:
    """The name itself where it is an output format; for pydantic."""
    if name not in OUTPUT_FORMATS:
        raise ValueError(f"unknown output format; allowed are {', '.join(OUTPUT_FORMATS)}")
    return name


class SpeechForm(BaseModel):
    """The form fields beside the recording; a field that is not named here is ignored."""

    model_id: Annotated[str, AfterValidator(known_model)] = MODEL_IDS[0]
    voice_settings: Json[dict[str, Any]] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    remove_background_noise: bool = False
    file_format: Literal["pcm_s16le_16", "other"] = "other"
    steps: Annotated[int, Field(ge=1, le=100)] | None = None

    def warnings(self) -> list[str]:
        """What was asked for and is not done."""
        found = []
        if self.voice_settings:
            found.append("voice_settings is not supported and was ignored")
        return found


OutputFormatName = Annotated[
    str, AfterValidator(known_format), WithJsonSchema({"type": "string", "enum": list(OUTPUT_FORMATS)})
]


def parse_fields(form: type[BaseModel], texts: Mapping[str, str]) -> Any:
    """The form's fields out of their texts; the ElevenLabs SDK sends `null` for one that is not set."""
    given = {name: text for name, text in texts.items() if text not in ("", "null")}
    try:
        return form.model_validate(given)
    except ValidationError as error:
        raise InvalidFields([FieldProblem(("body", *p["loc"]), p["msg"], p["type"]) for p in error.errors()]) from error


class Answer(Response):
    """Reads the form, converts, sends: all inside one context, so that a hang-up at any point ends everything."""

    def __init__(
        self, service: Service, request: Request, voice_id: str, *, output_format: str, live: bool, streaming: bool
    ) -> None:
        self._service = service
        self._request_id: str = request.state.request_id
        self._voice_id = voice_id
        self._options: dict[str, Any] = {"output_format": output_format, "live": live, "streaming": streaming}
        self._streaming = streaming
        self._started = False
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; an error before the first byte of the answer is raised, one after it cuts the answer short."""
        self._service.require_room()
        await asyncio.to_thread(self._service.voices.get, self._voice_id)  # before the upload is taken
        limits = self._service.limits
        try:
            async with incoming(receive, limits.max_upload_bytes, limits.max_upload_pause_s) as body:
                form = MultipartForm(header(scope, b"content-type"), body.chunks())
                if self._streaming:
                    await self._stream(form, send)
                else:
                    await self._whole(form, send)
        except ClientGone:
            log.info("client hung up", extra={"request_id": self._request_id})
        except Exception as error:
            if not self._started:
                raise
            # The status line is out: an answer that ends without its last chunk tells the client that it failed.
            ours = error if refusal(error) is None else None
            level = logging.INFO if ours is None else logging.ERROR
            extra = {"request_id": self._request_id, "error": type(error).__name__}
            log.log(level, "conversion ended half-way", exc_info=ours, extra=extra)

    async def _stream(self, form: MultipartForm, send: Send) -> None:
        texts: dict[str, str] = {}
        async for part in form.parts():
            if part.name == "audio":
                break
            texts[part.name] = await part.text()
        else:
            raise _no_audio()
        fields = parse_fields(SpeechForm, texts)
        upload = self._audio_then_rest(part, form, fields)
        conversion = await self._open(upload, fields)
        async with conversion:
            async for chunk in conversion:
                if not self._started:
                    await self._start(send, conversion, fields.warnings())
                await _send_body(send, chunk, more=True)
            if not self._started:
                await self._start(send, conversion, fields.warnings())
            await _send_body(send, b"", more=False)

    async def _audio_then_rest(self, audio: Part, form: MultipartForm, used: SpeechForm) -> AsyncIterator[bytes]:
        """The recording as it comes; a field behind it that would have changed the conversion is refused."""
        async for data in audio.chunks():
            yield data
        late: dict[str, str] = {}
        async for part in form.parts():
            if part.name == "audio":
                raise InvalidFields([FieldProblem(("body", "audio"), "there must be one recording", "duplicate")])
            late[part.name] = await part.text()
        fields = parse_fields(SpeechForm, late)
        for name in late.keys() & SpeechForm.model_fields.keys():
            if getattr(fields, name) != getattr(used, name):
                message = "on /stream this field must come before the recording, which is converted as it arrives"
                raise InvalidFields([FieldProblem(("body", name), message, "field_after_audio")])

    async def _whole(self, form: MultipartForm, send: Send) -> None:
        texts: dict[str, str] = {}
        audio: Backlog | None = None
        try:
            async for part in form.parts():
                if part.name != "audio":
                    texts[part.name] = await part.text()
                    continue
                if audio is not None:
                    raise InvalidFields([FieldProblem(("body", "audio"), "there must be one recording", "duplicate")])
                audio = Backlog()
                async for data in part.chunks():
                    audio.put(data)
            if audio is None:
                raise _no_audio()
            fields = parse_fields(SpeechForm, texts)
            conversion = await self._open(audio.chunks(), fields)
            with tempfile.SpooledTemporaryFile(_SPOOL_MEMORY_BYTES) as result:
                async with conversion:
                    async for chunk in conversion:
                        result.write(chunk)
                length_bytes = result.tell()
                result.seek(0)
                result.write(conversion.exact_header())
                result.seek(0)
                await self._start(send, conversion, fields.warnings(), length_bytes)
                while data := result.read(_SEND_BYTES):
                    await _send_body(send, data, more=True)
                await _send_body(send, b"", more=False)
        finally:
            if audio is not None:
                audio.close()

    async def _open(self, upload: AsyncIterator[bytes], fields: SpeechForm) -> Conversion:
        return await self._service.convert(
            self._voice_id,
            upload,
            seed=fields.seed,
            steps=fields.steps,
            file_format=fields.file_format,
            remove_noise=fields.remove_background_noise,
            **self._options,
        )

    async def _start(
        self, send: Send, conversion: Conversion, warnings: list[str], length_bytes: int | None = None
    ) -> None:
        headers = [("content-type", conversion.media_type), ("x-seedvc-seed", str(conversion.seed))]
        headers += [("x-seedvc-warning", one_line(warning)) for warning in (*warnings, *conversion.warnings)]
        if length_bytes is not None:
            headers.append(("content-length", str(length_bytes)))
        raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": raw})


def speech_router(service: Service) -> APIRouter:
    """The conversion routes under the paths that the two generations of ElevenLabs SDKs call."""
    router = APIRouter(tags=["speech to speech"])

    async def convert(
        request: Request,
        voice_id: str,
        output_format: OutputFormatName = DEFAULT_OUTPUT_FORMAT,
        enable_logging: bool = True,
        optimize_streaming_latency: Annotated[int | None, Query(ge=0, le=4)] = None,
        live: Annotated[bool, Query(description="take the path of a call instead of the one for recordings")] = False,
    ) -> Response:
        """Convert a recording and answer with the whole result."""
        return Answer(service, request, voice_id, output_format=output_format, live=live, streaming=False)

    async def stream(
        request: Request,
        voice_id: str,
        output_format: OutputFormatName = DEFAULT_OUTPUT_FORMAT,
        enable_logging: bool = True,
        optimize_streaming_latency: Annotated[int | None, Query(ge=0, le=4)] = None,
        live: Annotated[bool, Query(description="take the path of a call instead of the one for recordings")] = False,
    ) -> Response:
        """Convert a recording while it is being uploaded; fields must come before the recording."""
        return Answer(service, request, voice_id, output_format=output_format, live=live, streaming=True)

    for family in ("speech-to-speech", "voice-changer"):
        for path, handler in ((f"/{family}/{{voice_id}}", convert), (f"/{family}/{{voice_id}}/stream", stream)):
            router.add_api_route(
                path,
                handler,
                methods=["POST"],
                operation_id=f"{family}-{handler.__name__}",
                response_class=Response,
                responses={200: {"content": {"audio/mpeg": {"schema": {"type": "string", "format": "binary"}}}}},
                openapi_extra=form_schema(SpeechForm, audio={"type": "string", "format": "binary"}),
            )
    return router


def form_schema(form: type[BaseModel], **files: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a form that is taken apart by hand."""
    schema = form.model_json_schema()
    schema["properties"] = {**schema["properties"], **files}
    schema["required"] = [*schema.get("required", []), *files]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def header(scope: Scope, name: bytes) -> str:
    """A request header's value, empty where it is missing."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def one_line(text: str) -> str:
    """Text that a header can carry."""
    return " ".join(text.split()).encode("ascii", errors="replace").decode("ascii")


def _no_audio() -> InvalidFields:
    return InvalidFields([FieldProblem(("body", "audio"), "Field required", "missing")])


async def _send_body(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})

"""The conversion routes: a form with a recording comes in, the recording in another voice goes out.

`/stream` answers while the upload is still coming, so there the form is read in order and the recording is converted
as it arrives. The plain route takes the whole form first, in any order, and answers when all is known: exact sizes,
all warnings, and a true status code.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, Field, Json, WithJsonSchema
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from configs.schema import MAX_STEPS
from serve_app.callers.ring import caller_of
from serve_app.errors import ClientGone, FieldProblem, InvalidFields, refusal
from serve_app.forms import MODEL_IDS, form_schema, header, known_model, one_line, parse_fields
from serve_app.places import Place
from serve_app.recordings.conversion import Conversion
from serve_app.recordings.service import DEFAULT_OUTPUT_FORMAT, MAX_SEED, Recordings
from serve_app.uploads import MAX_FIELD_BYTES, Backlog, MultipartForm, Recording, incoming, recording_of
from webrtc.files import OUTPUT_FORMATS, NotAudio

log = logging.getLogger("seedvc.http")

_SPOOL_MEMORY_BYTES = 1 << 22
_SEND_BYTES = 1 << 16
_REST_OF_FORM_S = 0.25
"""How long a recording that comes first waits for the fields behind it: a short form is here by then, and its fields
count. Converting the first seconds of sound takes longer."""
_LATE_FORMAT_S = 30.0
_LATE_WARNINGS_S = 0.25
"""How long the answer to a recording that is here as a whole waits for what its end tells, as that it is cut off."""
_WITHOUT_EFFECT = {"model_id", "voice_settings"}
_IN_TIME = "and counted, as the form was short; send it first: behind a long recording it comes too late"
_LATE = "too late to count on /stream; send it before the recording"


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
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None

    def warnings(self) -> list[str]:
        """Names the fields that have no effect here."""
        found = []
        if self.voice_settings:
            found.append("voice_settings is not supported and was ignored")
        return found


OutputFormatName = Annotated[
    str, AfterValidator(known_format), WithJsonSchema({"type": "string", "enum": list(OUTPUT_FORMATS)})
]


class ConversionQuery(BaseModel):
    """What both routes take in the query."""

    output_format: OutputFormatName = DEFAULT_OUTPUT_FORMAT
    enable_logging: bool = True
    optimize_streaming_latency: Annotated[int | None, Field(ge=0, le=4)] = None
    live: Annotated[bool, Field(description="take the path of a call instead of the one for recordings")] = False


class LateFields:
    """The fields behind a recording on `/stream`, and which of them would change the result."""

    def __init__(self, recording: Recording, early: SpeechForm) -> None:
        self.wrong: list[str] = [f"{name} is larger than {MAX_FIELD_BYTES} bytes" for name in recording.unread]
        values: dict[str, Any] = {}
        for name, text in recording.fields.items():
            try:
                values |= parse_fields(SpeechForm, {name: text}).model_dump(include={name}, exclude_unset=True)
            except InvalidFields as error:
                self.wrong.append(f"{name} cannot be used: {error.problems[0].msg}")
        self.used = early.model_copy(update=values)
        self.changed = sorted(name for name in values.keys() - _WITHOUT_EFFECT if values[name] != getattr(early, name))
        """Fields that change the result."""


def stream_warnings(recording: Recording, early: SpeechForm, used: SpeechForm) -> list[str]:
    """Warnings about fields that are known when the answer on `/stream` begins; raises where it must not begin."""
    if recording.recordings > 1:
        raise _two_recordings()
    if recording.failure is not None:
        raise recording.failure
    if not recording.form_ended.is_set():
        # A form with settings before the recording hardly has more behind it.
        late = (
            []
            if early.model_fields_set
            else ["the answer began before the form ended; a field that follows comes " + _LATE]
        )
        return [*used.warnings(), *late]
    late_fields = LateFields(recording, early)
    warnings = [f"{wrong}; it was ignored" for wrong in late_fields.wrong]
    for name in late_fields.changed:
        counted = getattr(used, name) == getattr(late_fields.used, name)
        warnings.append(f"{name} came behind the recording, " + (_IN_TIME if counted else _LATE))
    return [*late_fields.used.warnings(), *warnings]


class Answer(Response):
    """Reads the form, converts, sends: all inside one context, so that a hang-up at any point ends everything."""

    def __init__(
        self,
        recordings: Recordings,
        request: Request,
        voice_id: str,
        query: ConversionQuery,
        *,
        streaming: bool,
    ) -> None:
        self._recordings = recordings
        self._request_id: str = request.state.request_id
        self._place: Place | None = getattr(request.state, "place", None)
        self._voice_id = voice_id
        short_windows = streaming and query.optimize_streaming_latency != 0
        self._options: dict[str, Any] = {
            "output_format": query.output_format,
            "live": query.live,
            "streaming": short_windows,
        }
        self._streaming = streaming
        self._started = False
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; an error before the first byte of the answer is raised, one after it cuts the answer short."""
        self._recordings.require_room()
        await self._recordings.voices.found(self._voice_id, caller_of(scope))  # before the upload is taken
        limits = self._recordings.limits
        try:
            async with (
                self._recordings.voices.using(self._voice_id),
                incoming(receive, limits.max_upload_bytes, limits.max_upload_pause_s) as body,
            ):
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
        early = parse_fields(SpeechForm, texts)
        async with recording_of(part, form) as recording:
            if not early.model_fields_set:
                await recording.ends_within(_REST_OF_FORM_S)
            if recording.form_ended.is_set():
                await self._convert_stream(recording, early, send)
                return
            try:
                await self._convert_stream(recording, early, send)
            except NotAudio:
                # samples without a header: the field that says so may still be on its way
                if self._started or "file_format" in early.model_fields_set:
                    raise
                await recording.ends_within(_LATE_FORMAT_S)
                if LateFields(recording, early).used.file_format == "other":
                    raise
                await self._convert_stream(recording, early, send)

    async def _convert_stream(self, recording: Recording, early: SpeechForm, send: Send) -> None:
        fields = LateFields(recording, early).used if recording.form_ended.is_set() else early
        conversion = await self._open(recording.chunks(), fields)
        async with conversion:
            async for chunk in conversion:
                if not self._started:
                    if recording.form_ended.is_set():
                        await conversion.decoded_within(_LATE_WARNINGS_S)
                    await self._start(send, conversion, stream_warnings(recording, early, fields))
                await _send_body(send, chunk, more=True)
            if not self._started:
                await self._start(send, conversion, stream_warnings(recording, early, fields))
            await recording.form_ended.wait()
            await _send_body(send, b"", more=False)

    async def _whole(self, form: MultipartForm, send: Send) -> None:
        texts: dict[str, str] = {}
        audio: Backlog | None = None
        try:
            async for part in form.parts():
                if part.name != "audio":
                    texts[part.name] = await part.text()
                    continue
                if audio is not None:
                    raise _two_recordings()
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
        return await self._recordings.convert(
            self._voice_id,
            upload,
            seed=fields.seed,
            steps=fields.steps,
            file_format=fields.file_format,
            place=self._place,
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


def recordings_router(recordings: Recordings) -> APIRouter:
    """The conversion routes under the paths that the two generations of ElevenLabs SDKs call."""
    router = APIRouter(tags=["speech to speech"])

    async def convert(request: Request, voice_id: str, query: Annotated[ConversionQuery, Query()]) -> Response:
        """Convert a recording and answer with the whole result."""
        return Answer(recordings, request, voice_id, query, streaming=False)

    async def stream(request: Request, voice_id: str, query: Annotated[ConversionQuery, Query()]) -> Response:
        """Convert a recording while it is being uploaded; fields that come behind it may come too late to count.

        `optimize_streaming_latency=0` begins later, and sounds like the plain route: it takes the same long windows.
        """
        return Answer(recordings, request, voice_id, query, streaming=True)

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


def _no_audio() -> InvalidFields:
    return InvalidFields([FieldProblem(("body", "audio"), "Field required", "missing")])


def _two_recordings() -> InvalidFields:
    return InvalidFields([FieldProblem(("body", "audio"), "there must be one recording", "duplicate")])


async def _send_body(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})

"""The body of a request: read from the socket as it comes, and parsed while it grows.

Starlette's `request.form()` keeps the whole body before a handler sees any of it, and its `StreamingResponse` reads
from `receive` itself to notice a hang-up, and so swallows pieces of a body that is still coming. Here one task, the
pump, owns `receive` for the whole request: it feeds the body to the parser's backlog and notices the hang-up.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import IO, Any

from serve_app.errors import BadUpload, ClientGone, UploadStalled, UploadTooLarge, first_cause
from serve_app.multipart import Event, MultipartParser, PartBegin, parse_options

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MEMORY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_PIECE_COST_BYTES = 64  # what Python keeps beside a piece's own bytes: a client may send them one by one
MAX_FIELD_BYTES = 1 << 16


class Backlog:
    """Bytes in the order they came: the first megabyte in memory, the rest in an unnamed temporary file.

    Ray Serve's proxy hands on a body as fast as the client sends it and cannot be held back, so what a slow
    conversion has not read yet must not pile up in memory.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        """Opened when memory is full: a form of many small parts holds no file for each."""
        self._read_at = 0
        self._write_at = 0
        self.size_bytes = 0
        """All that was ever put in."""

    def put(self, data: bytes) -> None:
        """Adds bytes at the end."""
        self.size_bytes += len(data)
        cost_bytes = len(data) + _PIECE_COST_BYTES
        if self._read_at == self._write_at and self._held_bytes + cost_bytes <= self._memory_bytes:
            self._pieces.append(data)
            self._held_bytes += cost_bytes
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the backlog; close() ends both
        self._file.seek(self._write_at)
        self._file.write(data)
        self._write_at += len(data)

    def get(self) -> bytes:
        """Takes the next bytes from the front; empty where there are none."""
        if self._pieces:
            data = self._pieces.popleft()
            self._held_bytes -= len(data) + _PIECE_COST_BYTES
            return data
        if self._file is None:
            return b""
        self._file.seek(self._read_at)
        data = self._file.read(min(_PIECE_BYTES, self._write_at - self._read_at))
        self._read_at += len(data)
        if self._write_at and self._read_at == self._write_at:
            self._read_at = self._write_at = 0
            self._file.seek(0)
            self._file.truncate()
        return data

    async def chunks(self) -> AsyncIterator[bytes]:
        """Takes all there is."""
        while data := self.get():
            yield data

    def close(self) -> None:
        """Forgets everything."""
        self._pieces.clear()
        self._held_bytes = 0
        if self._file is not None:
            self._file.close()


class RequestBody:
    """The body of one request, readable once, while it comes in."""

    def __init__(self, receive: Receive, max_bytes: int, max_pause_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._max_pause_s = max_pause_s
        self._backlog = Backlog()
        self._news = asyncio.Event()
        self._ended = False

    async def pump(self) -> None:
        """Takes the body off the socket, then waits for the hang-up.

        Raises:
            ClientGone: the hang-up. UploadTooLarge: more bytes than allowed. UploadStalled: no bytes for too long.
        """
        taken_bytes = 0
        while True:
            try:
                async with asyncio.timeout(None if self._ended else self._max_pause_s):
                    message = await self._receive()
            except TimeoutError:
                raise UploadStalled(self._max_pause_s) from None
            if message["type"] == "http.disconnect":
                raise ClientGone("the client hung up")
            data: bytes = message.get("body", b"")
            taken_bytes += len(data)
            if taken_bytes > self._max_bytes:
                raise UploadTooLarge(self._max_bytes)
            if data:
                self._backlog.put(data)
            self._ended = not message.get("more_body", False)
            self._news.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come."""
        while True:
            self._news.clear()
            while data := self._backlog.get():
                yield data
            if self._ended:
                return
            await self._news.wait()

    def close(self) -> None:
        """Forgets what was not read."""
        self._backlog.close()


@asynccontextmanager
async def incoming(receive: Receive, max_bytes: int, max_pause_s: float) -> AsyncIterator[RequestBody]:
    """The body of a request, read while the context is open. A reading error cancels the context and is raised."""
    body = RequestBody(receive, max_bytes, max_pause_s)
    try:
        async with asyncio.TaskGroup() as group:
            pump = group.create_task(body.pump())
            yield body
            pump.cancel()
    except BaseExceptionGroup as failures:
        raise first_cause(failures) from None
    finally:
        body.close()


class FieldTooLarge(BadUpload):
    """A text field is too large; the parts behind it can still be read."""


class Part:
    """One part of a multipart form, readable once and only before the next part is asked for."""

    def __init__(self, form: MultipartForm, begun: PartBegin) -> None:
        self._form = form
        self.name = begun.name
        self.filename = begun.filename

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The part's bytes as they come."""
        while (data := await self._form.next_data()) is not None:
            yield data

    async def text(self) -> str:
        """The whole of a small part."""
        collected = bytearray()
        async for data in self.chunks():
            collected += data
            if len(collected) > MAX_FIELD_BYTES:
                raise FieldTooLarge(f"the form field {self.name[:80]!r} is larger than {MAX_FIELD_BYTES} bytes")
        return collected.decode("utf-8", errors="replace")


class MultipartForm:
    """Takes a multipart body apart while it comes in."""

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        media_type, options = parse_options(content_type)
        boundary = options.get("boundary", "").rstrip()
        if media_type != "multipart/form-data" or not boundary:
            given = repr(content_type[:200]) if content_type else "no type"
            raise BadUpload(f"the body must be multipart/form-data with a boundary; got {given}")
        self._chunks = chunks
        self._events: deque[Event] = deque()
        """Events of the parser that nobody has taken yet."""
        self._failure: BadUpload | None = None
        """The error behind those."""
        self._parser = MultipartParser(boundary.encode("latin-1", errors="replace"))

    async def parts(self) -> AsyncIterator[Part]:
        """The parts in the order of the body. The unread rest of a part is skipped when the next is asked for."""
        while await self._parsed_more():
            event = self._events.popleft()
            if isinstance(event, PartBegin):
                yield Part(self, event)

    async def next_data(self) -> bytes | None:
        """The next bytes of the part being read; None at its end."""
        more = await self._parsed_more()
        assert more, "the parser ended the form inside a part"
        event = self._events.popleft()
        assert not isinstance(event, PartBegin), "the parser began a part inside another"
        return event if isinstance(event, bytes) else None

    async def _parsed_more(self) -> bool:
        """Reads on until there is an event; False at the end of the form."""
        while not self._events and not self._parser.ended:
            if self._failure is not None:
                raise self._failure
            data = await anext(self._chunks, b"")
            if not data:
                raise BadUpload("the multipart body ends before its closing boundary")
            try:
                self._events.extend(self._parser.feed(data))
            except BadUpload as error:
                self._failure = error
        return bool(self._events)


class Recording:
    """The recording of a form and the fields behind it, taken in as they come; the sound may be read more than once."""

    def __init__(self) -> None:
        self._sound = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 - close() ends it
        self._size_bytes = 0
        self._news = asyncio.Event()
        self._complete = False
        self.form_ended = asyncio.Event()
        """Set when the fields below are known."""
        self.fields: dict[str, str] = {}
        self.unread: list[str] = []
        """Fields that are too large."""
        self.recordings = 1
        self.failure: BadUpload | None = None
        """What is wrong with the form behind the recording."""

    async def take(self, audio: Part, form: MultipartForm) -> None:
        """Reads the rest of the form; BadUpload where it ends inside the recording."""
        async for data in audio.chunks():
            self._sound.seek(self._size_bytes)
            self._sound.write(data)
            self._size_bytes += len(data)
            self._news.set()
        self._complete = True
        self._news.set()
        try:
            async for part in form.parts():
                await self._take_field(part)
        except BadUpload as error:
            self.failure = error
        self.form_ended.set()

    async def _take_field(self, part: Part) -> None:
        if part.name == "audio":
            self.recordings += 1
            return
        try:
            self.fields[part.name] = await part.text()
        except FieldTooLarge:
            self.unread.append(part.name)

    async def ends_within(self, limit_s: float) -> None:
        """Waits for the end of the form, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.form_ended.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The recording's bytes as they come, from the first on."""
        at = 0
        while True:
            self._news.clear()
            while at < self._size_bytes:
                self._sound.seek(at)
                data = self._sound.read(_PIECE_BYTES)
                at += len(data)
                yield data
            if self._complete:
                return
            await self._news.wait()

    def close(self) -> None:
        """Forgets the recording."""
        self._sound.close()


@asynccontextmanager
async def recording_of(audio: Part, form: MultipartForm) -> AsyncIterator[Recording]:
    """The form's recording, taken in while the context is open."""
    recording = Recording()
    try:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(recording.take(audio, form))
            yield recording
            reader.cancel()
    except BaseExceptionGroup as failures:
        raise first_cause(failures) from None
    finally:
        recording.close()

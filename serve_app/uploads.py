"""A request's body on its way in: taken off the socket as it comes, and taken apart while it still grows.

Starlette's `request.form()` keeps the whole body before a handler sees any of it, and its `StreamingResponse` reads
from `receive` itself to notice a hang-up, and so swallows pieces of a body that is still coming. Here one task, the
pump, owns `receive` for the whole request: it feeds the body to the parser's backlog and notices the hang-up.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve_app.errors import BadUpload, ClientGone, UploadStalled, UploadTooLarge, first_cause

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MEMORY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_MAX_FIELD_BYTES = 1 << 16


class Backlog:
    """Bytes in the order they came: the first megabyte in memory, the rest in an unnamed temporary file.

    Ray Serve's proxy hands on a body as fast as the client sends it and cannot be held back, so what a slow
    conversion has not read yet must not pile up in memory.
    """

    def __init__(self, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the backlog; close() ends both
        self._read_at = 0
        self._write_at = 0
        self.size_bytes = 0
        """All that was ever put in."""

    def put(self, data: bytes) -> None:
        """Adds bytes at the end."""
        self.size_bytes += len(data)
        if self._read_at == self._write_at and self._held_bytes + len(data) <= self._memory_bytes:
            self._pieces.append(data)
            self._held_bytes += len(data)
            return
        self._file.seek(self._write_at)
        self._file.write(data)
        self._write_at += len(data)

    def get(self) -> bytes:
        """Takes the next bytes from the front; empty where there are none."""
        if self._pieces:
            data = self._pieces.popleft()
            self._held_bytes -= len(data)
            return data
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
    """The request's body, pumped while the context is open; what ends the pump cancels the context and is raised."""
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


class Part:
    """One part of a multipart form, readable once and only before the next part is asked for."""

    def __init__(self, form: MultipartForm, name: str, filename: str | None) -> None:
        self._form = form
        self.name = name
        self.filename = filename

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The part's bytes as they come."""
        while (data := await self._form.next_data()) is not None:
            yield data

    async def text(self) -> str:
        """The whole of a small part."""
        collected = bytearray()
        async for data in self.chunks():
            collected += data
            if len(collected) > _MAX_FIELD_BYTES:
                raise BadUpload(f"the form field {self.name!r} is larger than {_MAX_FIELD_BYTES} bytes")
        return collected.decode("utf-8", errors="replace")


class MultipartForm:
    """Takes a multipart body apart while it comes in."""

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        media_type, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if media_type != b"multipart/form-data" or not boundary:
            raise BadUpload(f"the body must be multipart/form-data with a boundary; got {content_type or 'no type'!r}")
        self._chunks = chunks
        self._events: deque[Part | bytes | None] = deque()
        """What the parser found and nobody took yet: a part's start, its bytes, None for its end."""
        self._ended = False
        self._header_name = self._header_value = b""
        self._disposition = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
                    "on_part_end": lambda: self._events.append(None),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise BadUpload(f"the body is not a multipart form: {error}") from error

    async def parts(self) -> AsyncIterator[Part]:
        """The parts in the order of the body; what was not read of one is skipped when the next is asked for."""
        while await self._parsed_more():
            event = self._events.popleft()
            if isinstance(event, Part):
                yield event

    async def next_data(self) -> bytes | None:
        """The next bytes of the part being read; None at its end."""
        more = await self._parsed_more()
        assert more, "the parser ended the form inside a part"
        event = self._events.popleft()
        assert not isinstance(event, Part), "the parser began a part inside another"
        return event

    async def _parsed_more(self) -> bool:
        """Reads on until there is an event; False at the end of the form."""
        while not self._events and not self._ended:
            data = await anext(self._chunks, b"")
            if not data:
                raise BadUpload("the multipart body ends before its closing boundary")
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise BadUpload(f"the body is not a multipart form: {error}") from error
        return bool(self._events)

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise BadUpload("a part of the multipart body has no name")
        filename = options.get(b"filename")
        self._events.append(
            Part(
                self,
                options[b"name"].decode("utf-8", errors="replace"),
                None if filename is None else filename.decode("utf-8", errors="replace"),
            )
        )

    def _on_end(self) -> None:
        self._ended = True

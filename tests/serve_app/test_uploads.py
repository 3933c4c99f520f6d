"""Bodies on their way in: any cut of the bytes gives the same parts, what waits stays in order and in bounds."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.edge import Edge
from serve_app.errors import BadUpload, ClientGone, UploadStalled, UploadTooLarge
from serve_app.uploads import Backlog, MultipartForm, RequestBody, incoming

CONTENT_TYPE = "multipart/form-data; boundary=abc"
SOUND = np.random.default_rng(0).bytes(5000) + b"\r\n--ab\r\n--abd--\r\n\r\n--" + bytes(100)
BODY = (
    b"--abc\r\nContent-Disposition: form-data; name=\"seed\"\r\n\r\n7\r\n"
    b"--abc\r\nCONTENT-DISPOSITION: form-data; name=\"audio\"; filename=\"\xc3\xa4.wav\"\r\n"
    b"Content-Type: audio/wav\r\n\r\n" + SOUND + b"\r\n"
    b'--abc\r\nContent-Disposition: form-data; name="empty"\r\n\r\n\r\n--abc--\r\nignored epilogue'
)  # fmt: skip


async def cut(data: bytes, seed: int, largest: int) -> AsyncIterator[bytes]:
    """The bytes in pieces of random size."""
    generator, start = np.random.default_rng(seed), 0
    while start < len(data):
        size = int(generator.integers(1, largest + 1))
        yield data[start : start + size]
        start += size


async def parts_of(
    chunks: AsyncIterator[bytes], content_type: str = CONTENT_TYPE
) -> list[tuple[str, str | None, bytes]]:
    return [
        (part.name, part.filename, b"".join([data async for data in part.chunks()]))
        async for part in MultipartForm(content_type, chunks).parts()
    ]


@pytest.mark.parametrize("largest", [1, 3, 50, 10000])
@pytest.mark.parametrize("seed", range(4))
async def test_any_cut_gives_the_same_parts(largest: int, seed: int) -> None:
    assert await parts_of(cut(BODY, seed, largest)) == [
        ("seed", None, b"7"),
        ("audio", "ä.wav", SOUND),
        ("empty", None, b""),
    ]


async def test_what_is_not_read_of_a_part_is_skipped() -> None:
    names = [part.name async for part in MultipartForm(CONTENT_TYPE, cut(BODY, 0, 50)).parts()]
    assert names == ["seed", "audio", "empty"]


async def test_a_part_is_handed_on_before_it_has_ended() -> None:
    """The point of it all: bytes come out when they came in, not when the part is complete."""
    asked = 0

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal asked
        for data in (BODY[:400], BODY[400:]):
            asked += 1
            yield data

    async for part in MultipartForm(CONTENT_TYPE, slowly()).parts():
        if part.name == "audio":
            assert await anext(part.chunks())
            assert asked == 1
            break


@pytest.mark.parametrize("length", range(0, len(BODY) - 20, 331))
async def test_a_body_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises(BadUpload, match="ends before"):
        await parts_of(cut(BODY[:length], 0, 100))


async def test_a_field_cannot_fill_the_memory() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--abc\r\nContent-Disposition: form-data; name="seed"\r\n\r\n'
        while True:
            yield bytes(10000)

    async for part in MultipartForm(CONTENT_TYPE, endless()).parts():
        with pytest.raises(BadUpload, match="'seed' is larger than"):
            await part.text()
        return


@pytest.mark.parametrize("seed", range(5))
def test_a_backlog_gives_back_what_it_was_given_in_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    backlog, put, got = Backlog(memory_bytes=1000), bytearray(), bytearray()
    for _ in range(300):
        if generator.random() < 0.55:
            data = generator.bytes(int(generator.integers(1, 400)))
            backlog.put(data)
            put += data
        else:
            got += backlog.get()
        assert len(got) <= len(put)
    while data := backlog.get():
        got += data
    assert got == put and backlog.size_bytes == len(put)
    backlog.close()


def test_a_long_backlog_is_not_in_memory() -> None:
    backlog, data = Backlog(), bytes(1 << 16)
    tracemalloc.start()
    for _ in range(1000):
        backlog.put(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20, "64 MB were put in"
    backlog.close()


class Client:
    """The server's side of a connection: a queue of ASGI messages."""

    def __init__(self, *messages: MutableMapping[str, Any]) -> None:
        self.queue: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        for message in messages:
            self.queue.put_nowait(message)

    async def receive(self) -> MutableMapping[str, Any]:
        return await self.queue.get()


def sent(body: bytes, more: bool = True) -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


HANG_UP: MutableMapping[str, Any] = {"type": "http.disconnect"}


async def read(body: RequestBody) -> bytes:
    return b"".join([data async for data in body.chunks()])


async def test_a_body_is_read_as_it_comes() -> None:
    client = Client(sent(b"one"))
    async with incoming(client.receive, 100, 9.0) as body:
        chunks = body.chunks()
        assert await anext(chunks) == b"one"
        client.queue.put_nowait(sent(b"two"))
        assert await anext(chunks) == b"two"
        client.queue.put_nowait(sent(b"", more=False))
        assert [data async for data in chunks] == []


async def test_a_hang_up_ends_whatever_the_request_is_doing() -> None:
    client = Client(sent(b"all", more=False))
    ended = False
    with pytest.raises(ClientGone):
        async with incoming(client.receive, 100, 9.0) as body:
            assert await read(body) == b"all"
            client.queue.put_nowait(HANG_UP)
            try:
                await asyncio.Event().wait()
            finally:
                ended = True
    assert ended


async def test_a_body_beyond_the_limit_ends_the_request() -> None:
    with pytest.raises(UploadTooLarge, match="10 bytes"):
        async with incoming(Client(sent(b"12345"), sent(b"678901")).receive, 10, 9.0) as body:
            await read(body)


async def test_the_error_of_the_request_itself_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        async with incoming(Client(sent(b"1")).receive, 10, 9.0):
            raise ZeroDivisionError


async def test_a_cancelled_request_stays_cancelled() -> None:
    async def request() -> None:
        async with incoming(Client().receive, 10, 9.0) as body:
            await read(body)

    task = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_stops_sending_does_not_keep_its_place() -> None:
    with pytest.raises(UploadStalled, match="0.01 s"):
        async with incoming(Client(sent(b"1")).receive, 10, 0.01) as body:
            await read(body)


async def test_a_client_that_has_sent_all_may_wait_as_long_as_it_takes() -> None:
    async with incoming(Client(sent(b"1", more=False)).receive, 10, 0.01) as body:
        assert await read(body) == b"1"
        await asyncio.sleep(0.05)


async def test_a_request_that_its_server_cancels_is_a_hang_up(caplog: pytest.LogCaptureFixture) -> None:
    async def cancelled() -> MutableMapping[str, Any]:
        raise RuntimeError("the task was cancelled")

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        async with incoming(receive, 1000, 5.0) as body:
            async for _ in body.chunks():
                pass

    async def unwanted(message: Message) -> None:
        raise AssertionError("nobody is there to read an answer")

    with caplog.at_level(logging.INFO):
        await Edge(reading)({"type": "http", "headers": []}, cancelled, unwanted)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.INFO, "client hung up")]

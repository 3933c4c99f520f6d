"""Recordings are decoded in processes of their own: bounded in number, memory and time, and ended by hanging up.

Strangers choose how much work a decode is. In a thread it could not be stopped, and would hold up all that waits for
a thread.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np

import webrtc
from serve_app.errors import SourceTooLong
from stages.types import Samples
from webrtc.files import NotAudio
from webrtc.files.process import BEGIN, DONE, END, FAILED, FEED, HEADER, MORE, RATE, SOUND, TOO_COMPLEX, WARNING

LENGTH_TOLERANCE_S = 0.1
"""Encoders pad, so a recording of exactly the limit may decode to a few frames more."""

_UPLOAD_BYTES = 1 << 16
_IDLE = 2
"""Processes that wait for the next recording: one takes a quarter of a second to start, and 40 MB."""
_RECORDINGS = 100
"""How many recordings a process decodes before another takes its place."""
_SILENT_S = 150.0
"""The longest wait for an answer. A busy process meets its limit of processor time earlier."""
_RECEIVE_BYTES = 1 << 18
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""What the process needs of ours; our secrets are not among it."""


class DecodeProcess:
    """One process, and the socket to it. Bound to no event loop."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        root = str(Path(webrtc.__file__).resolve().parents[1])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        # One thread: numpy would start one for each core, and give each its share of memory.
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "webrtc.files.process"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a Ctrl-C is for us; we end it
            )
        self._received = bytearray()
        self.recordings = 0
        self.busy = False
        """Whether a recording has begun and not ended."""

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take a recording."""
        return self._process.poll() is None

    async def begin(self, file_format: str) -> None:
        """Begins the next recording."""
        self.busy = True
        self.recordings += 1
        await self._send(BEGIN, file_format.encode())

    async def pieces(self, data: bytes | None, warnings: list[str]) -> AsyncGenerator[tuple[Samples, int]]:
        """Feeds bytes, or ends the recording by None; yields what they decode to, and notes what was odd."""
        await self._send(END if data is None else FEED, data or b"")
        while True:
            kind, body = await self._message()
            if kind == SOUND:
                yield np.frombuffer(body, "<f4", offset=RATE.size), RATE.unpack_from(body)[0]
            elif kind == WARNING:
                warnings.append(body.decode())
            elif kind == MORE:
                return
            else:
                assert kind in (DONE, FAILED), f"unknown message {kind!r}"
                self.busy = False
                if kind == FAILED:
                    raise NotAudio(*json.loads(body))
                return

    def kill(self) -> None:
        """Ends the process, whatever it does, and frees all that it holds."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    async def _send(self, kind: bytes, data: bytes) -> None:
        with _told_as_too_complex():
            await asyncio.get_running_loop().sock_sendall(self._socket, HEADER.pack(kind, len(data)) + data)

    async def _message(self) -> tuple[bytes, bytearray]:
        kind, length = HEADER.unpack(await self._receive(HEADER.size))
        return kind, await self._receive(length)

    async def _receive(self, size: int) -> bytearray:
        loop = asyncio.get_running_loop()
        with _told_as_too_complex():
            async with asyncio.timeout(_SILENT_S):
                while len(self._received) < size:
                    data = await loop.sock_recv(self._socket, _RECEIVE_BYTES)
                    if not data:
                        raise ConnectionResetError("the decoder has ended")
                    self._received += data
        taken = self._received[:size]
        del self._received[:size]
        return taken


@contextmanager
def _told_as_too_complex() -> Iterator[None]:
    """NotAudio where a decoder has ended or hangs: it has met one of its limits."""
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise NotAudio("too_complex", TOO_COMPLEX) from error


_idle: list[DecodeProcess] = []
_busy: set[DecodeProcess] = set()


def busy_processes() -> int:
    """How many decode now."""
    return len(_busy)


def warm_up() -> None:
    """Starts a process ahead of the first recording."""
    if not _idle:
        _idle.append(DecodeProcess())


@asynccontextmanager
async def decode_process() -> AsyncIterator[DecodeProcess]:
    """A process for one recording; one that is left before the recording has ended is killed."""
    process = _take()
    _busy.add(process)
    try:
        yield process
    finally:
        _busy.discard(process)
        if not process.busy and process.alive and process.recordings < _RECORDINGS and len(_idle) < _IDLE:
            _idle.append(process)
        else:
            process.kill()


def _take() -> DecodeProcess:
    while _idle:
        process = _idle.pop()
        if process.alive:
            return process
        process.kill()
    return DecodeProcess()


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().kill()


class Decoded:
    """An upload as sound: decoded in a process of its own, piece by piece, no longer than allowed."""

    def __init__(self, upload: AsyncIterator[bytes], file_format: str = "other", max_s: float | None = None) -> None:
        self._upload = upload
        self._file_format = file_format
        self._max_s = max_s
        self.warnings: list[str] = []
        """What was odd about the upload so far."""

    async def pieces(self) -> AsyncGenerator[tuple[Samples, int]]:
        """Mono samples and their rate, in pieces of about half a second, as early as possible.

        Raises:
            NotAudio: the upload is no recording that can be used.
            SourceTooLong: there is more sound than allowed.
        """
        taken_s = 0.0
        async with aclosing(self._raw_pieces()) as source:
            async for samples, sample_rate in source:
                taken_s += len(samples) / sample_rate
                if self._max_s is not None and taken_s > self._max_s + LENGTH_TOLERANCE_S:
                    raise SourceTooLong(self._max_s)
                yield samples, sample_rate

    async def _raw_pieces(self) -> AsyncGenerator[tuple[Samples, int]]:
        async with decode_process() as process:
            await process.begin(self._file_format)
            async for data in self._upload:
                for start in range(0, len(data), _UPLOAD_BYTES):
                    async with aclosing(process.pieces(data[start : start + _UPLOAD_BYTES], self.warnings)) as pieces:
                        async for piece in pieces:
                            yield piece
            async with aclosing(process.pieces(None, self.warnings)) as pieces:
                async for piece in pieces:
                    yield piece

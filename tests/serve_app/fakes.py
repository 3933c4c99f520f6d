"""A small real backend (the voice is the source itself), recordings of all shapes, a server thread, a raw client."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import threading
import time
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import uvicorn
from fastapi import FastAPI

from configs.serve import Limits
from serve_app.recordings.service import Recordings
from serve_app.voices.service import Voices
from serve_app.voices.store import VoiceStore
from stages.reference import ReferenceReport, check_reference
from stages.resample import ModelRateStream
from stages.types import Prompt, Samples, StoredVoice, Voice
from webrtc.files import OUTPUT_FORMATS, RecordingEncoder, encode_file


class EchoStream:
    """Converts by resampling to 22.05 kHz, a moment later."""

    def __init__(self, backend: EchoBackend, sample_rate: int) -> None:
        self._backend = backend
        self._resampler = ModelRateStream(sample_rate)
        self._begun = False

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        if not self._begun:
            self._begun = True
            self._backend.open_streams += 1
        await asyncio.sleep(0)
        self._backend.pushed_samples += len(samples)
        if self._backend.failure is not None:
            raise self._backend.failure
        yield self._resampler.push(samples)

    async def finish(self) -> AsyncIterator[Samples]:
        yield self._resampler.push(np.zeros(0, np.float32), last=True)

    def close(self) -> None:
        self._backend.open_streams -= self._begun


class EchoBackend:
    """Says back what it hears, and remembers how it was asked."""

    fingerprint = "echo"
    recording_steps: int | None = None

    def __init__(self) -> None:
        self.open_streams = 0
        self.pushed_samples = 0
        self.made_voices = 0
        self.calls: list[dict[str, object]] = []
        self.failure: Exception | None = None

    async def make_voice(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        check_reference(samples, sample_rate)
        report = ReferenceReport(speech_s=4.1, level_dbfs=-20.04, snr_db=40.0)
        self.made_voices += 1
        nothing = Prompt(*(np.zeros(shape, np.float32) for shape in ((80, 4), (4, 8), (192,), (1,), (80, 81))))
        return Voice(nothing, nothing, self.fingerprint), report.warnings, report

    @property
    def streams(self) -> EchoBackend:
        """Opens conversions itself."""
        return self

    def recording(self, voice: StoredVoice, *, sample_rate: int, **options: object) -> EchoStream:
        self.calls.append({"path": "file", "voice_id": voice.voice_id, "sample_rate": sample_rate, **options})
        return EchoStream(self, sample_rate)

    def live_recording(self, voice: StoredVoice, *, sample_rate: int, **options: object) -> EchoStream:
        self.calls.append({"path": "live", "voice_id": voice.voice_id, "sample_rate": sample_rate, **options})
        return EchoStream(self, sample_rate)


def recordings_over(backend: EchoBackend, store: VoiceStore, limits: Limits) -> Recordings:
    """Conversions and voices over a backend and a store."""
    return Recordings(Voices(store, backend, limits), backend.streams, limits)


@contextmanager
def serving(app: FastAPI, *, ws: Literal["none", "websockets-sansio"] = "none") -> Iterator[str]:
    """Runs the app on a free loopback port in a thread of its own; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", ws=ws, lifespan="off"))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        wait_until(lambda: server.started, "the server listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: object, what: str, limit_s: float = 20.0) -> None:
    """Waits for something that another thread brings about."""
    assert callable(condition)
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"never came true: {what}"
        time.sleep(0.01)


def tone(seconds: float, sample_rate: int = 22050, hz: float = 220.0) -> Samples:
    """A steady tone at half scale."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def wav_file(samples: np.ndarray, sample_rate: int) -> bytes:
    """A 16-bit WAV of samples [n] or [n, channels]."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, sample_rate, 0, "NONE", ""))
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def float_wav_file(samples: Samples, sample_rate: int) -> bytes:
    """A 32-bit float WAV, which can hold what is not a number."""
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, sample_rate, sample_rate * 4, 4, 32)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def encoded(seconds: float, output_format: str) -> bytes:
    """A tone as a whole file in one of our output formats."""
    buffer = io.BytesIO()
    encode_file([tone(seconds)], OUTPUT_FORMATS[output_format], buffer)
    return buffer.getvalue()


def streamed(seconds: float, output_format: str) -> bytes:
    """The same as it would be recorded live: no sizes in any header."""
    with RecordingEncoder(OUTPUT_FORMATS[output_format]) as encoder:
        return encoder.feed(tone(seconds)) + encoder.finish()


class RawUpload:
    """A client that sends a chunked multipart body in its own time, and sees what comes back meanwhile."""

    BOUNDARY = "raw-boundary"

    def __init__(self, url: str, path: str, timeout_s: float = 30.0) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self.received = b""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary={self.BOUNDARY}\r\n\r\n"
        )
        self._socket.sendall(head.encode())

    def field(self, name: str, text: str) -> None:
        """Sends a whole text field."""
        self.send(f'--{self.BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode())

    def begin_file(self, name: str = "audio") -> None:
        """Sends the head of a file part."""
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="upload"'
        self.send(f"--{self.BOUNDARY}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n".encode())

    def send(self, data: bytes) -> None:
        """Sends one chunk."""
        self._socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def end_file(self) -> None:
        """Ends the part."""
        self.send(b"\r\n")

    def end(self) -> None:
        """Ends form and body."""
        self.send(f"--{self.BOUNDARY}--\r\n".encode())
        self._socket.sendall(b"0\r\n\r\n")

    def receive_body(self, n_bytes: int = 1) -> bytes:
        """Waits until that many bytes of the answer's body are there; the chunk sizes in between count."""
        while len(self.body) < n_bytes:
            data = self._socket.recv(65536)
            assert data, f"the answer ended early: {self.received[:500]!r}"
            self.received += data
        return self.body

    def receive_all(self) -> bytes:
        """Reads until the server closes the connection; the body with chunk sizes taken out."""
        pieces = [self.received]
        while data := self._socket.recv(65536):
            pieces.append(data)
        self.received = b"".join(pieces)
        if b"transfer-encoding: chunked" not in self.received.partition(b"\r\n\r\n")[0].lower():
            return self.body
        sized, at, pieces = self.body, 0, []
        while (line_end := sized.find(b"\r\n", at)) > 0:
            start = line_end + 2
            pieces.append(sized[start : start + int(sized[at:line_end], 16)])
            at = start + len(pieces[-1]) + 2
        return b"".join(pieces)

    @property
    def body(self) -> bytes:
        """What came behind the head so far."""
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        """The status code, once it is there."""
        return int(self.received.split(b" ", 2)[1])

    @property
    def complete(self) -> bool:
        """Whether a chunked answer came with its last chunk."""
        return self.received.endswith(b"0\r\n\r\n")

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

"""The two ends of a call, in frames of 20 ms at 48 kHz: microphone and speaker, or files, or one of each."""

from __future__ import annotations

import asyncio
import contextlib
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import soxr

from serve_app.commands import UserMistake
from serve_app.commands.devices import Device, aim, sounddevice
from webrtc.files import RecordingDecoder
from webrtc.files.codecs import Samples

RATE = 48000
FRAME = 960
FRAME_S = FRAME / RATE
_READ_BYTES = 1 << 16
_SLEW = 0.05
"""How much of a callback's lateness the smoothed clock takes over: sound cards call in bursts, but keep time."""

Tick = Callable[[Samples, float], Samples]
"""One frame said at a moment of the monotonic clock (s) -> the frame to be heard then."""


class Recording:
    """A file as a microphone: its frames in order, then silence."""

    def __init__(self, path: Path) -> None:
        self._frames = _frames_of(path)
        self.ended = False

    def frame(self) -> Samples:
        """The next 20 ms."""
        found = next(self._frames, None)
        self.ended = found is None
        return np.zeros(FRAME, np.float32) if found is None else found


class WavFile:
    """A file as a speaker: 16 bit mono at 48 kHz; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = wave.open(str(path), "wb")  # noqa: SIM115 - closed by the context
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(RATE)

    def write(self, samples: Samples) -> None:
        """Appends."""
        self._file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


async def on_timer(tick: Tick) -> None:
    """Stands in for a sound card: one tick each 20 ms until cancelled.

    A tick gets its frame at the end of the frame, as from a microphone, and a time without jitter.
    """
    silence = np.zeros(FRAME, np.float32)
    due_s = time.monotonic()
    while True:
        due_s += FRAME_S
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        tick(silence, due_s)


@contextlib.contextmanager
def on_devices(tick: Tick, *, microphone: Device | None, speaker: Device | None) -> Iterator[float]:
    """Opens a microphone, a speaker or both; yields their latency in s.

    The tick is called in the sound card's own thread.
    """
    portaudio = sounddevice()
    aim(microphone, speaker)
    smooth_s = [0.0]

    def now_s() -> float:
        due_s, measured_s = smooth_s[0] + FRAME_S, time.monotonic()
        late_s = measured_s - due_s
        smooth_s[0] = measured_s if abs(late_s) > 5 * FRAME_S else due_s + _SLEW * late_s
        return smooth_s[0]

    def both(captured: Samples, played: Samples, frames: int, clock: object, flags: object) -> None:
        played[:, 0] = tick(captured[:, 0].copy(), now_s())

    def only_said(captured: Samples, frames: int, clock: object, flags: object) -> None:
        tick(captured[:, 0].copy(), now_s())

    def only_heard(played: Samples, frames: int, clock: object, flags: object) -> None:
        played[:, 0] = tick(np.zeros(FRAME, np.float32), now_s())

    options: dict[str, Any] = {
        "samplerate": RATE, "blocksize": FRAME, "channels": 1, "dtype": "float32", "latency": "low",
    }  # fmt: skip
    try:
        if microphone is not None and speaker is not None:
            stream = portaudio.Stream(device=(microphone.index, speaker.index), callback=both, **options)
        elif microphone is not None:
            stream = portaudio.InputStream(device=microphone.index, callback=only_said, **options)
        else:
            assert speaker is not None
            stream = portaudio.OutputStream(device=speaker.index, callback=only_heard, **options)
        stream.start()
    except (portaudio.PortAudioError, ValueError) as error:
        raise UserMistake(f"cannot use the sound devices: {error}; --in and --out take files") from error
    try:
        yield float(np.sum(stream.latency))
    finally:
        stream.abort()  # and not stop, which waits for a device that may be gone
        stream.close()


def _frames_of(path: Path) -> Iterator[Samples]:
    """A file in frames of 20 ms at 48 kHz, read as they are asked for; the last one is filled up with silence."""
    waiting = np.zeros(0, np.float32)
    for piece in _resampled(path):
        waiting = np.concatenate((waiting, piece))
        n_whole = len(waiting) // FRAME * FRAME
        yield from waiting[:n_whole].reshape(-1, FRAME)
        waiting = waiting[n_whole:]
    if len(waiting):
        yield np.pad(waiting, (0, FRAME - len(waiting)))


def _resampled(path: Path) -> Iterator[Samples]:
    stream: soxr.ResampleStream | None = None
    for samples, rate in _decoded(path):
        stream = stream or soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        yield stream.resample_chunk(samples)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _decoded(path: Path) -> Iterator[tuple[Samples, int]]:
    with path.open("rb") as file, RecordingDecoder() as decoder:
        while data := file.read(_READ_BYTES):
            yield from decoder.feed(data)
        yield from decoder.finish()

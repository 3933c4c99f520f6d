"""Recordings: growing sound at any rate to converted sound, in bounded memory.

RecordingStream follows upstream's offline path: long windows through the encoder, the condition cut into chunks that
fit the diffusion's context, chunks cross-faded. LiveRecordingStream sends a recording through the line of a call
instead. Both take sound piece by piece, and how it is cut leaves no trace in the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import ConfigError, FileSettings
from stages.gate import apply_gains, tick_gains
from stages.geometry import CONTENT_RATE, HOP, TICK_16K, TICK_MODEL, mel_frames
from stages.high_pass import RESULT_CHUNKS, HighPass
from stages.level import LevelFollower, limited
from stages.line import MAX_IN_FLIGHT, Block, BlockLine
from stages.pitch import FILE_CENTS_PER_S, UsualPitch, pitch_hz
from stages.quiet import lift, powers, raised
from stages.resample import ContentRateStream, ModelRateStream
from stages.stitch import ChunkJoiner
from stages.types import DiffuseRequest, EncodeRequest, Pending, Samples, Stages, VocodeRequest, Voice


@dataclass(frozen=True)
class Segmentation:
    """Lengths of the encoder's windows over a recording, in samples at 16 kHz."""

    window: int
    overlap: int

    @classmethod
    def of(cls, settings: FileSettings, streaming: bool) -> Segmentation:
        """Long windows for whole files; short ones where the answer should begin before the upload has ended."""
        if streaming:
            window_ms, overlap_ms = settings.stream_segment_ms, settings.stream_segment_overlap_ms
        else:
            window_ms, overlap_ms = settings.segment_ms, settings.segment_overlap_ms
        return cls(window_ms * CONTENT_RATE // 1000, overlap_ms * CONTENT_RATE // 1000)


@dataclass(frozen=True)
class FileSampling:
    """How a recording is rendered."""

    seed: int
    steps: int
    cfg_rate: float
    length_adjust: float = 1.0


@dataclass(frozen=True)
class _Chunk:
    """Frames [start, stop) of a segment whose whole condition has `frames`."""

    frames: int
    start: int
    stop: int
    first_frame: int
    last: bool


Compute = Callable[..., Awaitable[Any]]
"""Calls a function with arguments, somewhere, and gives what it returns."""


async def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Compute in the caller's own thread."""
    return function(*args)


class RecordingStream:
    """One recording on its way. Not for two tasks at once: push, push, ..., finish.

    What takes milliseconds beside the networks goes by `compute`, so that an event loop can be spared it.
    """

    def __init__(
        self,
        stages: Stages,
        voice: Voice | str,
        prompt_frames: int,
        settings: FileSettings,
        sampling: FileSampling,
        sample_rate: int,
        streaming: bool = False,
        compute: Compute = at_once,
    ) -> None:
        self._compute = compute
        self._window_frames = settings.context_frames - prompt_frames
        if self._window_frames < 2 * settings.overlap_frames:
            raise ConfigError(
                f"file.context_frames is {settings.context_frames}; a prompt of {prompt_frames} frames leaves no room"
            )
        self._stages, self._voice, self._sampling = stages, voice, sampling
        self._overlap_frames = settings.overlap_frames
        self._segments = Segmentation.of(settings, streaming)
        self._to_model, self._to_content = ModelRateStream(sample_rate), ContentRateStream()
        self._high_pass = HighPass() if settings.high_pass else None
        self._result_high_pass = HighPass(RESULT_CHUNKS) if settings.high_pass else None
        self._joiner = ChunkJoiner(settings.overlap_frames * HOP)
        self._level = LevelFollower() if settings.follow_level else None
        self._pitch = UsualPitch(FILE_CENTS_PER_S)
        self._held: Samples = np.zeros(0, np.float32)  # 16 kHz, from the current window's start on
        self._window_start = 0
        self._n_model_samples = 0
        self._in_flight: Pending | None = None

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Take samples at the constructor's rate; yield what is converted so far, at 22.05 kHz."""
        await self._compute(self._take, samples, False)
        async for wave in self._convert_full_windows():
            yield wave

    async def finish(self) -> AsyncIterator[Samples]:
        """End of the recording: yield the rest."""
        await self._compute(self._take, np.zeros(0, np.float32), True)
        async for wave in self._convert_full_windows():  # the resamplers' rest may have filled one
            yield wave
        async for wave in self._convert(self._held, last=True):
            yield wave

    def close(self) -> None:
        """Give up what is still in flight."""
        if self._in_flight is not None:
            self._stages.cancel(self._in_flight)
            self._in_flight = None

    async def _convert_full_windows(self) -> AsyncIterator[Samples]:
        """All windows but the last. `finish` converts that one, so a full window waits until more has come."""
        while len(self._held) > self._segments.window:
            async for wave in self._convert(self._held[: self._segments.window], last=False):
                yield wave
            advance = self._segments.window - self._segments.overlap
            self._held = self._held[advance:]
            self._window_start += advance

    def _take(self, samples: Samples, last: bool) -> None:
        at_model_rate = self._to_model.push(samples, last)
        self._n_model_samples += len(at_model_rate)
        new = self._to_content.push(at_model_rate, last)
        self._held = np.concatenate([self._held, self._high_pass.push(new) if self._high_pass else new])

    def _frame_at(self, sample_16k: int) -> int:
        """Target mel frames before a sample at 16 kHz."""
        return int(mel_frames(sample_16k * TICK_MODEL // TICK_16K) * self._sampling.length_adjust)

    async def _convert(self, window: Samples, last: bool) -> AsyncIterator[Samples]:
        """Encodes one window, renders its chunks, each while the one before is waited for, and joins them."""
        chunks = self._chunks(len(window), last)
        if not chunks:
            if self._n_model_samples and not self._window_start:  # shorter than one mel frame
                yield np.zeros(self._n_model_samples, np.float32)
            return
        gains, power = tick_gains(window), powers(window, TICK_16K)
        is_audible = any(self._gains_of(chunk, gains).any() for chunk in chunks)
        content = None
        if is_audible:
            content = self._stages.encode(await self._compute(self._request, window, lift(power)))
        ahead: list[tuple[Pending | None, np.ndarray, _Chunk]] = []
        for chunk in chunks:
            chunk_gains = self._gains_of(chunk, gains)
            wave = self._start(content, chunk) if content is not None and chunk_gains.any() else None
            ahead.append((wave, chunk_gains, chunk))
            if len(ahead) == 2:
                yield await self._finish_chunk(*ahead.pop(0), gains, power, following=ahead[0][0])
        for entry in ahead:
            yield await self._finish_chunk(*entry, gains, power, following=None)

    def _request(self, window: Samples, gain: float) -> EncodeRequest:
        """The request of a window. It takes the usual pitch of the windows before, so that a song keeps its key."""
        known = self._segments.overlap // TICK_16K if self._window_start else 0
        self._pitch.take(pitch_hz(window, len(window) // TICK_16K)[known:])
        return EncodeRequest(raised(window, gain), usual_hz=self._pitch.hz)

    def _chunks(self, window_samples: int, last: bool) -> list[_Chunk]:
        """Cut one window's frames as upstream cuts the whole: full contexts that overlap by 16 frames."""
        base = self._frame_at(self._window_start)
        if last:
            stop = int(mel_frames(self._n_model_samples) * self._sampling.length_adjust) - base
        else:
            stop = self._frame_at(self._window_start + window_samples) - base
        start = 0
        if self._window_start:
            start = self._frame_at(self._window_start + self._segments.overlap) - base - self._overlap_frames
        chunks = []
        while start < stop:
            end = min(start + self._window_frames, stop)
            chunks.append(_Chunk(stop, start, end, base + start, last and end == stop))
            if end == stop:
                break
            start = end - self._overlap_frames
        return chunks

    def _ticks_of(self, frame: int) -> float:
        """Source tick, within the window, of a target frame."""
        return frame * HOP / TICK_MODEL / self._sampling.length_adjust

    def _gains_of(self, chunk: _Chunk, gains: np.ndarray) -> np.ndarray:
        return gains[int(self._ticks_of(chunk.start)) : int(self._ticks_of(chunk.stop)) + 1]

    def _start(self, content: Pending, chunk: _Chunk) -> Pending:
        request = DiffuseRequest(
            voice=self._voice,
            frames=chunk.frames,
            start=chunk.start,
            stop=chunk.stop,
            seed=self._sampling.seed,
            first_frame=chunk.first_frame,
            steps=self._sampling.steps,
            cfg_rate=self._sampling.cfg_rate,
        )
        return self._stages.render(content, request, VocodeRequest())

    async def _finish_chunk(
        self,
        pending: Pending | None,
        chunk_gains: np.ndarray,
        chunk: _Chunk,
        gains: np.ndarray,
        power: np.ndarray,
        following: Pending | None,
    ) -> Samples:
        self._in_flight = following
        wave = None if pending is None else await self._stages.collect(pending)
        joined: Samples = await self._compute(self._joined, wave, chunk, gains, power)
        return joined

    def _joined(self, wave: Samples | None, chunk: _Chunk, gains: np.ndarray, power: np.ndarray) -> Samples:
        """A chunk as loud as its source, joined to the one before; None is silence."""
        if wave is None:
            wave = np.zeros((chunk.stop - chunk.start) * HOP, np.float32)
        else:
            first_tick, ticks_per_tick = self._ticks_of(chunk.start), 1 / self._sampling.length_adjust
            wave = apply_gains(wave, gains, first_tick, ticks_per_tick)
            if self._level:
                n_final = len(wave) - (0 if chunk.last else self._overlap_frames * HOP)
                wave = self._level.chunk(wave, power, first_tick, ticks_per_tick, n_final)
        joined = self._joiner.push(wave, chunk.last)
        return limited(self._result_high_pass.push(joined)) if self._result_high_pass else joined


class BlockStream:
    """A line of blocks without deadlines."""

    def __init__(self, stages: Stages, line: BlockLine) -> None:
        self._stages, self._line = stages, line
        self._in_flight: deque[tuple[Block, Pending | None]] = deque()
        self._heard_s = 0.0

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Take samples at 16 kHz; yield the blocks [block] at 22.05 kHz that they complete."""
        self._heard_s += len(samples) / CONTENT_RATE
        for block in self._line.push(samples, self._heard_s):  # the time is that of the sound
            pending = block.requests.start(self._stages) if block.way == "render" else None
            self._in_flight.append((block, pending))
            if len(self._in_flight) == MAX_IN_FLIGHT:
                yield await self._finish()
        while self._in_flight:
            yield await self._finish()

    def close(self) -> None:
        """Give up what is still in flight."""
        while self._in_flight:
            _, pending = self._in_flight.popleft()
            if pending is not None:
                self._stages.cancel(pending)

    async def _finish(self) -> Samples:
        """Wait for the oldest block and stitch it on."""
        block, pending = self._in_flight[0]
        try:
            wave = None if pending is None else await self._stages.collect(pending)
        finally:
            self._in_flight.popleft()
        if wave is not None:
            return self._line.finish(block, wave)
        return self._line.bypass(block) if block.way == "bypass" else self._line.skip(block)


class LiveRecordingStream:
    """A recording through the line of a call, without deadlines; the line's delay is cut off, the length kept."""

    def __init__(self, stages: Stages, line: BlockLine, sample_rate: int) -> None:
        self._blocks = BlockStream(stages, line)
        self._to_model, self._to_content = ModelRateStream(sample_rate), ContentRateStream()
        self._to_skip = line.geometry.lag_ticks * TICK_MODEL
        self._flush_16k = (line.geometry.lag_ticks + line.geometry.block_ticks) * TICK_16K
        self._n_in = self._n_out = 0

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Take samples at the constructor's rate; yield what is converted so far, at 22.05 kHz."""
        async for wave in self._run(samples, last=False):
            yield wave

    async def finish(self) -> AsyncIterator[Samples]:
        """End of the recording: push silence through until all of it is out."""
        async for wave in self._run(np.zeros(0, np.float32), last=True):
            yield wave

    def close(self) -> None:
        """Give up what is still in flight."""
        self._blocks.close()

    async def _run(self, samples: Samples, last: bool) -> AsyncIterator[Samples]:
        at_model_rate = self._to_model.push(samples, last)
        self._n_in += len(at_model_rate)
        at_content_rate = self._to_content.push(at_model_rate, last)
        if last:
            at_content_rate = np.concatenate([at_content_rate, np.zeros(self._flush_16k, np.float32)])
        async for block in self._blocks.push(at_content_rate):
            wave = block[min(self._to_skip, len(block)) :]
            self._to_skip -= len(block) - len(wave)
            wave = wave[: self._n_in - self._n_out] if last else wave
            self._n_out += len(wave)
            if len(wave):
                yield wave

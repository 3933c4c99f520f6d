"""Sounds and small stand-ins for the stages, shared by the property tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from configs import Preset, load_preset
from configs.schema import FileSettings, LiveSettings
from stages.gate import tick_gains
from stages.geometry import CONTENT_RATE, HOP, MODEL_RATE, TICK_16K
from stages.line import BlockLine, Gate
from stages.local import drain
from stages.recording import BlockStream, FileSampling, LiveRecordingStream, RecordingStream
from stages.settings import CallSettings
from stages.types import DiffuseRequest, EncodeRequest, Samples, Stages, VocodeRequest
from webrtc.files import decode_file

SPEECH = sorted((Path(__file__).parents[2] / "samples" / "sources").glob("*.flac"))
PAUSE_TICKS = 125
PHRASE_TICKS = 75
ENCODER_LIMIT = 30 * CONTENT_RATE
PROMPT_FRAMES = MODEL_RATE // HOP


class Pushes(Protocol):
    def push(self, samples: Samples, last: bool = False) -> Samples: ...


def noise(seconds: float, sample_rate: int, seed: int = 0, peak: float = 0.5) -> Samples:
    """White noise: never silent for a tick, and no two stretches alike."""
    generator = np.random.default_rng(seed)
    return generator.uniform(-peak, peak, round(seconds * sample_rate)).astype(np.float32)


def sine(n_samples: int, hz: float = 220.0) -> Samples:
    """A sine at 22.05 kHz from sample 0 on."""
    return np.asarray(np.sin(2 * np.pi * hz / MODEL_RATE * np.arange(n_samples)), np.float32)


def packets(samples: Samples, seed: int, largest: int) -> Iterator[Samples]:
    """The samples cut at random places, some pieces empty; `largest` 1 gives single samples."""
    generator, start = np.random.default_rng(seed), 0
    while start < len(samples):
        size = 1 if largest == 1 else int(generator.integers(0, largest + 1))
        yield samples[start : start + size]
        start += size


def run_through(stream: Pushes, pieces: Iterator[Samples]) -> Samples:
    """All that a converter gives for the pieces and at their end."""
    outputs = [stream.push(piece) for piece in pieces]
    return np.concatenate([*outputs, stream.push(np.zeros(0, np.float32), last=True)])


def converted(stream: RecordingStream | LiveRecordingStream, *pieces: Samples) -> Samples:
    """All that a recording's stream yields for the pieces and at their end."""
    waves: list[Samples] = [np.zeros(0, np.float32)]
    for piece in pieces:
        waves += drain(partial(stream.push, piece))
    return np.concatenate([*waves, *drain(stream.finish)])


def quick_preset() -> Preset:
    """The fixtures' networks with short windows, prompts and segments, so that seconds of sound have many of each."""
    preset = load_preset("seed-vc-small")
    live = LiveSettings(context_ms=700, diffusion_context_ms=200, prompt_ms=500, steps=1, cfg_rate=0.0)
    file = FileSettings(
        prompt_ms=1000,
        context_frames=170,
        segment_ms=1400,
        segment_overlap_ms=400,
        stream_segment_ms=800,
        stream_segment_overlap_ms=300,
        steps=1,
        cfg_rate=0.0,
    )
    return preset.model_copy(update={"live": live, "file": file, "whisper_window": "cut"})


@cache
def speech() -> Samples:
    """All sample recordings at 16 kHz, one after the other."""
    decoded = [decode_file(path) for path in SPEECH]
    return np.concatenate([soxr.resample(sound, rate, CONTENT_RATE) for sound, rate in decoded]).astype(np.float32)


def with_pauses(sound: Samples) -> Samples:
    """Phrases of 1.5 s, cut anywhere, with 2.5 s of silence around each."""
    size = PHRASE_TICKS * TICK_16K
    pause = np.zeros(PAUSE_TICKS * TICK_16K, np.float32)
    phrases = [sound[start : start + size] for start in range(0, len(sound) - size + 1, size)]
    return np.concatenate([part for phrase in phrases for part in (pause, phrase)] + [pause])


class SineStages:
    """Stages that render one sine of absolute time, so that any misplaced or unmatched seam shows."""

    def encode(self, request: EncodeRequest) -> Samples:
        if len(request.samples) > ENCODER_LIMIT:
            raise ValueError(f"a window of {len(request.samples)} samples is longer than Whisper's 30 s")
        return request.samples

    def diffuse(self, content: Samples, request: DiffuseRequest) -> NDArray[Any]:
        first = request.first_frame * HOP
        return np.arange(first, first + (request.stop - request.start) * HOP)

    def vocode(self, mel: NDArray[Any], request: VocodeRequest) -> Samples:
        return np.asarray(np.sin(2 * np.pi * 220.0 / MODEL_RATE * mel), np.float32)

    def render(self, content: Samples, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Samples:
        return self.vocode(self.diffuse(content, diffuse), vocode)

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Samples:
        return self.render(self.encode(encode), diffuse, vocode)

    def stage_ms(self, wave: Samples) -> dict[str, float]:
        return {}

    async def collect(self, wave: Samples) -> Samples:
        return wave

    def cancel(self, wave: Samples) -> None:
        """Nothing is under way."""


class EchoStages(SineStages):
    """Stages whose output is made of the very samples that came in, at the pitch of the seed."""

    def diffuse(self, content: Samples, request: DiffuseRequest) -> NDArray[Any]:
        at = np.arange(request.start * HOP, request.stop * HOP) * len(content) // (request.frames * HOP)
        return content[at] * np.cos((request.seed + request.first_frame) * np.arange(len(at)))

    def vocode(self, mel: NDArray[Any], request: VocodeRequest) -> Samples:
        return mel.astype(np.float32)


def silence_only(window: Samples, new_ticks: int) -> NDArray[np.float32]:
    """The gate of recordings in long chunks: all that is not silence is worth converting."""
    return tick_gains(window)


def line(gate: Gate | None = silence_only) -> BlockLine:
    """The default geometry, in blocks of 180 ms."""
    live = LiveSettings(cfg_rate=0.0)
    return BlockLine(live, CallSettings.of(live, "anyone", mode="constant", steps=1), seed=3, gate=gate)


def call(stages: Stages) -> BlockStream:
    """A call without deadlines in the default geometry."""
    return BlockStream(stages, line())


def recording(stages: Stages, sample_rate: int, *, streaming: bool = False) -> RecordingStream:
    """A recording in the short segments of `quick_preset`, behind a prompt of 1 s."""
    sampling = FileSampling(seed=3, steps=1, cfg_rate=0.0)
    return RecordingStream(stages, "anyone", PROMPT_FRAMES, quick_preset().file, sampling, sample_rate, streaming)


def live_recording(stages: Stages, sample_rate: int) -> LiveRecordingStream:
    """A recording through the path of a call in the default geometry."""
    return LiveRecordingStream(stages, line(), sample_rate)

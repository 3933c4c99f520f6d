"""Recordings: length kept, seams unheard, silence kept silent, memory bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from configs import load_preset
from configs.schema import ConfigError, FileSettings
from stages.encoder import melody
from stages.geometry import CONTENT_RATE, HOP, MODEL_RATE, TICK_16K, TICK_MODEL
from stages.local import LocalStages, drain
from stages.pitch import median_hz, pitch_hz
from stages.recording import Compute, FileSampling, LiveRecordingStream, RecordingStream, Segmentation, at_once
from stages.types import EncodeRequest, Samples, Voice
from tests.stages.sounds import SineStages, converted, live_recording, noise, quick_preset, recording, sine

Open = Callable[[LocalStages, Voice, int], RecordingStream | LiveRecordingStream]
PATHS: dict[str, Open] = {
    "file": lambda stages, voice, rate: stages.streams.recording(voice, sample_rate=rate),
    "stream": lambda stages, voice, rate: stages.streams.recording(voice, sample_rate=rate, streaming=True),
    "live": lambda stages, voice, rate: stages.streams.live_recording(voice, sample_rate=rate),
}


def full_size(sample_rate: int, *, streaming: bool = False, length_adjust: float = 1.0) -> RecordingStream:
    """Upstream's own lengths: windows of 30 s, contexts of 2580 frames, a prompt of 25 s."""
    sampling = FileSampling(0, 1, 0.0, length_adjust)
    return RecordingStream(SineStages(), "anyone", 2153, FileSettings(), sampling, sample_rate, streaming)


# One sample, within a block of the resampler, one window, just over one, several; at the window's border and around it.
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.3, 5, 6.9, 7.0, 7.1, 29.9, 30.0, 30.001, 30.1, 30.3, 31, 55.1, 70])
def test_length_and_seams_of_a_recording(seconds: float, streaming: bool) -> None:
    source = noise(seconds, 16000)
    out = converted(full_size(16000, streaming=streaming), *np.array_split(source, 7))
    n_expected = round(len(source) * MODEL_RATE / 16000)
    assert n_expected - HOP - 1 <= len(out) <= n_expected + 1
    if seconds >= 0.3:
        # Where each frame lands and what it fades into is right if one sine comes out of all windows and chunks.
        assert np.allclose(out, sine(len(out)), atol=1e-5)


@pytest.mark.parametrize("sample_rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_length_at_any_rate(sample_rate: int) -> None:
    for seconds in (0.01, 0.3, 1.37, 3.2, 6.001):
        source = noise(seconds, sample_rate)
        n_expected = len(source) * MODEL_RATE / sample_rate
        assert abs(len(converted(recording(SineStages(), sample_rate), source)) - n_expected) < HOP + 1
        assert abs(len(converted(live_recording(SineStages(), sample_rate), source)) - n_expected) <= 1


async def test_what_the_networks_do_not_compute_can_leave_the_event_loop() -> None:
    settings = load_preset("tiny").file  # all of it: levels, high pass
    source, here, threads = noise(25, 16000), threading.get_ident(), set[int]()

    def told(function: Callable[..., Any], *args: Any) -> Any:
        threads.add(threading.get_ident())
        return function(*args)

    async def beside(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(told, function, *args)

    async def whole(compute: Compute) -> Samples:
        stream = RecordingStream(SineStages(), "anyone", 430, settings, FileSampling(0, 1, 0.0), 16000, False, compute)
        waves = [wave for piece in np.array_split(source, 50) async for wave in stream.push(piece)]
        return np.concatenate([*waves, *[wave async for wave in stream.finish()]])

    assert np.array_equal(await whole(beside), await whole(at_once))
    assert here not in threads


def test_length_adjust() -> None:
    out = converted(full_size(16000, length_adjust=1.1), noise(40, 16000))
    assert len(out) == pytest.approx(44 * MODEL_RATE, abs=2 * HOP)
    assert np.allclose(out, sine(len(out)), atol=1e-5)


def test_the_path_of_a_call_keeps_time_within_its_search() -> None:
    out = converted(live_recording(SineStages(), 16000), noise(4, 16000))
    steady = out[MODEL_RATE // 4 :]
    assert np.abs(np.diff(steady)).max() <= 1.05 * 2 * np.pi * 220 / MODEL_RATE
    assert np.abs(steady[: -len(steady) % TICK_MODEL or None][:TICK_MODEL]).max() > 0.97


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seconds", [0.01, 0.3, 2.5])
def test_silence_stays_silent(quick_stages: LocalStages, quick_voice: Voice, path: str, seconds: float) -> None:
    silence = np.zeros(round(seconds * 44100), np.float32)
    out = converted(PATHS[path](quick_stages, quick_voice, 44100), silence)
    assert len(out) == pytest.approx(seconds * MODEL_RATE, abs=HOP + 1)
    assert not out.any()


@pytest.mark.parametrize("path", PATHS)
def test_a_pause_is_silent(quick_stages: LocalStages, quick_voice: Voice, path: str) -> None:
    source = noise(3.0, 16000)
    source[16000:32000] = 0
    out = converted(PATHS[path](quick_stages, quick_voice, 16000), source)
    closed_s = 1.4 if path == "live" else 1.3  # a call's speech detector holds on longer than the 200 ms of recordings
    pause = out[round(closed_s * MODEL_RATE) : round(1.9 * MODEL_RATE)]
    assert not pause.any()
    assert out[: round(0.9 * MODEL_RATE)].any()
    assert out[round(2.1 * MODEL_RATE) :].any()


def kept_bytes(thing: object) -> int:
    """Bytes of all arrays that an object of ours holds, however deep."""
    if isinstance(thing, np.ndarray):
        return max(thing.nbytes, 0 if thing.base is None else kept_bytes(thing.base))
    if isinstance(thing, list | tuple):
        return sum(map(kept_bytes, thing))
    return sum(map(kept_bytes, vars(thing).values())) if type(thing).__module__.startswith("stages.") else 0


def test_memory_is_bounded() -> None:
    packet = noise(0.5, 48000)
    stream, most, n_out = full_size(48000), 0, 0
    for _ in range(3 * 60 * 2):
        n_out += sum(map(len, drain(lambda: stream.push(packet))))
        most = max(most, kept_bytes(stream))
    one_window = (30 + 0.5) * 16000 * 4
    margins = 32 * 4096 + 3 * 4410 * 4  # the joiner's tail and fades, the resampler's block
    assert one_window * 0.9 < most <= one_window + margins
    assert n_out > 2 * 60 * MODEL_RATE


def test_the_prompt_must_leave_room() -> None:
    settings = quick_preset().file
    with pytest.raises(ConfigError, match="context_frames is 170; a prompt of 160 frames leaves no room"):
        RecordingStream(SineStages(), "anyone", 160, settings, FileSampling(0, 1, 0.0), 16000)


def test_the_call_path_gives_sound_where_the_source_has_it() -> None:
    """The path's delay is cut off: a burst comes out where it went in, give or take the search of 20 ms."""
    source = np.zeros(3 * 16000, np.float32)
    source[16000:24000] = noise(0.5, 16000)
    out = converted(live_recording(SineStages(), 16000), source)
    heard = np.flatnonzero(out) / MODEL_RATE
    assert heard[0] == pytest.approx(1.0, abs=0.07)
    assert heard[-1] == pytest.approx(1.5 + 0.2, abs=0.07)


class Listening(SineStages):
    """Stages that keep what the encoder gets."""

    def __init__(self) -> None:
        self.heard: list[EncodeRequest] = []

    def encode(self, request: EncodeRequest) -> Samples:
        self.heard.append(request)
        return super().encode(request)


def sung(semitones: Sequence[float], note_s: float) -> Samples:
    """Notes over 220 Hz, each with edges of 50 ms, at 16 kHz."""
    t = np.arange(round(note_s * CONTENT_RATE)) / CONTENT_RATE
    edges = np.minimum(1, np.minimum(t, t[::-1]) / 0.05)
    hz = 220 * 2 ** (np.asarray(semitones)[:, None] / 12)
    notes = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 8)) * edges
    return np.asarray(0.1 * notes.ravel(), np.float32)


TUNES = {
    "low verse, high chorus": [0, 2, 4, 2, 0, -3, 0, 2] * 2 + [7, 9, 7, 5, 7, 9, 11, 7] * 2,
    "scale": [0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19, 21, 23, 24, 23, 21, 19, 17, 16, 14, 12, 11, 9, 7, 5, 4, 2, 0],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("tune", TUNES)
def test_a_song_is_not_transposed_between_windows(tune: str, streaming: bool) -> None:
    """What two windows tell of the same moment is the same note within half a semitone, though their medians differ."""
    notes = TUNES[tune]
    source = sung(notes, 25 / len(notes))
    file = load_preset("tiny").file
    sampling, stages_ = FileSampling(0, 1, 0.0), Listening()
    stream = RecordingStream(stages_, "anyone", 430, file, sampling, CONTENT_RATE, streaming)
    converted(stream, *np.array_split(source, 9))
    overlap = Segmentation.of(file, streaming).overlap // TICK_16K
    told = [melody(request, len(request.samples) // TICK_16K) for request in stages_.heard]
    assert len(told) > 2
    for before, after in zip(told, told[1:], strict=False):
        one, other = before[-overlap + 5 : -5], after[5 : overlap - 5]
        both = (one > 0) & (other > 0)
        assert both.sum() > 20
        assert abs(np.median(np.log2(one[both] / other[both]))) < 50 / 1200
    own = [np.log2(median_hz(pitch_hz(r.samples, len(r.samples) // TICK_16K))) for r in stages_.heard]
    assert np.abs(np.diff(own)).max() > 200 / 1200  # by its own median each would be told otherwise


def test_another_speaker_in_a_recording_is_followed() -> None:
    phrase, pause = sung([2, 1, 0, -1, -3], 0.3), np.zeros(CONTENT_RATE // 2, np.float32)
    low, high = np.concatenate([phrase, pause] * 7), np.concatenate([sung([12, 11, 10, 9, 7], 0.3), pause] * 10)
    stages_ = Listening()
    stream = RecordingStream(stages_, "anyone", 430, load_preset("tiny").file, FileSampling(0, 1, 0.0), CONTENT_RATE)
    converted(stream, low, high)
    assert stages_.heard[0].usual_hz == pytest.approx(220, rel=0.03)
    assert stages_.heard[-1].usual_hz == pytest.approx(220 * 2 ** (10 / 12), rel=0.03)


def test_how_a_recording_is_cut_does_not_change_its_usual_pitch() -> None:
    source, told = sung(TUNES["scale"], 0.5), []
    for pieces in ([source], np.array_split(source, 50)):
        stages_ = Listening()
        stream = RecordingStream(
            stages_, "anyone", 430, load_preset("tiny").file, FileSampling(0, 1, 0.0), CONTENT_RATE
        )
        converted(stream, *pieces)
        told.append([request.usual_hz for request in stages_.heard])
    assert told[0] == told[1] and len(told[0]) == 2

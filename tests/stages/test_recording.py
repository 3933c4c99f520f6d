"""Recordings: length kept, seams unheard, silence kept silent, memory bounded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from configs.schema import ConfigError, FileSettings
from stages.geometry import HOP, MODEL_RATE, TICK_MODEL
from stages.local import LocalStages, drain
from stages.recording import FileSampling, LiveRecordingStream, RecordingStream
from stages.types import Voice
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

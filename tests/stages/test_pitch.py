"""Pitch is found within a percent from 70 to 480 Hz, and silence and noise have none."""

import numpy as np
import pytest

from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import Geometry
from stages.pitch import pitch_hz, relative_pitch

RATE, N = 16000, 32000


def harmonics(hz: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    return np.asarray(0.1 * np.sum([np.sin(k * phase) / k for k in range(1, 8)], axis=0), np.float32)


@pytest.mark.parametrize("hz", [70.0, 110.0, 200.0, 350.0, 480.0])
def test_steady_tone(hz: float) -> None:
    pitch = pitch_hz(harmonics(np.full(N, hz)), N // 320 + 1)[3:-3]
    assert np.abs(pitch / hz - 1).max() < 0.01


def test_glide_is_followed_without_octave_jumps() -> None:
    hz = np.geomspace(100, 200, N)
    pitch = pitch_hz(harmonics(hz), N // 320 + 1)[3:-3]
    assert np.abs(np.log2(pitch / hz[::320][3 : 3 + len(pitch)])).max() < 0.05


def test_nothing_voiced_in_silence_and_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, N).astype(np.float32)
    assert not pitch_hz(np.zeros(N, np.float32), 101).any()
    assert (pitch_hz(noise, 101) > 0).mean() < 0.1


def test_relative_pitch_does_not_tell_how_high_the_voice_is() -> None:
    melody = 1 + 0.2 * np.sin(np.arange(N) / 4000)
    low, high = (relative_pitch(harmonics(hz * melody), 101)[3:-3] for hz in (110, 190))
    assert np.abs(np.log2(low / high)).max() < 0.03
    assert np.median(low) == pytest.approx(1.0)


def test_a_wave_shorter_than_a_frame_is_unvoiced() -> None:
    assert not pitch_hz(np.ones(100, np.float32), 1).any()


def test_a_call_remembers_the_speakers_usual_pitch() -> None:
    """Two seconds low, then a high sentence: the last window alone would call the high one usual."""
    speech = harmonics(np.concatenate([np.full(4 * RATE, 100.0), np.full(2 * RATE, 150.0)]))
    windows = list(BlockMaker(Geometry.from_settings(LiveSettings())).push(speech))
    assert windows[0].usual_hz is None
    assert windows[-1].usual_hz == pytest.approx(100, rel=0.02)

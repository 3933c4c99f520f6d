"""Channels to mono: what cancels, what is silent, what is not scaled; levels, warnings, no clicks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.webrtc.files.recordings import float_wav, multi_wav
from tests.webrtc.files.test_decode import decode, random_cuts
from webrtc.files.codecs import Samples

RATE = 22050
Wave = NDArray[np.float64]


def noise(seed: int, seconds: float = 2.0, level: float = 0.1) -> Wave:
    """A voice, as far as levels go: no two seeds have anything in common."""
    return np.clip(np.random.default_rng(seed).normal(0, level, round(seconds * RATE)), -0.9, 0.9)


def level_db(samples: NDArray[np.floating]) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


def mixed(channels: list[Wave]) -> tuple[Samples, list[str]]:
    data = multi_wav(np.stack(channels), RATE)
    samples, _, warnings = decode(data)
    pieces, _, _ = decode(data, random_cuts(1, 5000))
    np.testing.assert_array_equal(pieces, samples)
    assert len(samples) == len(channels[0])
    return samples, warnings


VOICE, OTHER = noise(0), noise(1)
NOTHING = np.zeros_like(VOICE)


@pytest.mark.parametrize(
    "channels",
    [
        [VOICE, -VOICE],
        [VOICE, -0.7 * VOICE],
        [VOICE, -VOICE + 0.2 * OTHER],
        [NOTHING, NOTHING, VOICE, -VOICE, NOTHING, NOTHING],
        [VOICE, -np.roll(VOICE, 0), VOICE],
    ],
)
def test_where_channels_cancel_one_is_taken_and_it_is_told(channels: list[Wave]) -> None:
    samples, warnings = mixed(channels)
    assert abs(level_db(samples) - level_db(VOICE)) < 0.1
    assert len(warnings) == 1 and "cancel" in warnings[0]


@pytest.mark.parametrize(
    "channels",
    [
        [VOICE, VOICE],
        [VOICE, NOTHING],
        [NOTHING, VOICE],
        [VOICE, noise(2, level=1e-4)],
        [NOTHING, NOTHING, VOICE, NOTHING, NOTHING, NOTHING],
        [VOICE, VOICE, NOTHING],
    ],
)
def test_channels_that_carry_nothing_do_not_lower_the_level(channels: list[Wave]) -> None:
    samples, warnings = mixed(channels)
    np.testing.assert_allclose(samples, VOICE, atol=2e-3)
    assert warnings == []


def test_two_voices_are_both_heard() -> None:
    samples, warnings = mixed([VOICE, OTHER])
    np.testing.assert_allclose(samples, (VOICE + OTHER) / 2, atol=1e-4)
    assert warnings == []


def test_a_second_speaker_who_begins_late_is_heard_at_once() -> None:
    a, b = noise(0, 60.0), noise(1, 1.0)
    left, right = np.concatenate([a, np.zeros_like(b)]), np.concatenate([np.zeros_like(a), b])
    samples, warnings = mixed([left, right])
    late = samples[len(a) :]
    assert level_db(late[: RATE // 10]) > level_db(b) - 10
    assert warnings == []


def test_a_polarity_that_changes_loses_nothing_and_does_not_click() -> None:
    t = np.arange(4 * RATE) / RATE
    left = 0.5 * np.sin(2 * np.pi * 220 * t)
    right = np.where(np.arange(len(left)) < 2 * RATE, left, -left)
    samples, warnings = mixed([left, right])
    frames = samples[: len(samples) // 441 * 441].reshape(-1, 441)
    assert min(level_db(frame) for frame in frames) > level_db(left) - 10
    assert np.abs(np.diff(samples)).max() < 1.3 * np.abs(np.diff(left)).max()
    assert len(warnings) == 1


@pytest.mark.parametrize("full_scale", [32767.0, 2.0**23 - 1, 2.0**31 - 1])
@pytest.mark.parametrize("n_bytes", [4, 8])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_numbers_that_were_stored_as_float_are_scaled_back(
    full_scale: float, n_bytes: int, channels: int
) -> None:
    lead_in = np.concatenate([np.zeros(RATE // 3), noise(3, 0.2, 1e-4), VOICE])
    data = float_wav(np.stack([lead_in * full_scale] * channels, axis=1), RATE, n_bytes=n_bytes)
    samples, _, warnings = decode(data)
    np.testing.assert_allclose(samples, lead_in, atol=1e-4)
    assert len(warnings) == 1 and "not scaled" in warnings[0]
    np.testing.assert_array_equal(decode(data, random_cuts(2, 3000))[0], samples)


def test_what_goes_a_little_beyond_full_scale_is_lowered_without_a_click() -> None:
    t = np.arange(3 * RATE) / RATE
    wave = np.where(t < 1.5, 0.5, 1.3) * np.sin(2 * np.pi * 220 * t)
    samples, _, warnings = decode(float_wav(wave, RATE))
    assert np.abs(samples).max() <= 1.0
    np.testing.assert_allclose(samples[:RATE], wave[:RATE], atol=1e-6)
    np.testing.assert_allclose(samples[2 * RATE :], wave[2 * RATE :] / np.abs(wave).max(), atol=1e-4)
    assert len(warnings) == 1 and "1.30" in warnings[0]


def test_float_samples_within_full_scale_are_exact() -> None:
    wave = noise(5, 1.0).astype(np.float32)
    samples, _, warnings = decode(float_wav(wave, RATE))
    np.testing.assert_array_equal(samples, wave)
    assert warnings == []


def test_absurd_float_samples_become_sound_or_are_refused() -> None:
    wave = noise(5, 1.0) * 1e37
    samples, _, warnings = decode(float_wav(np.stack([wave, -wave], axis=1), RATE))
    assert np.abs(samples).max() <= 1.0 and np.isfinite(samples).all() and samples.any()
    assert len(warnings) == 2

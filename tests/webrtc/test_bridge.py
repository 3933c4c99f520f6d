"""What bridges the time until a late block: it goes on as the sound was, without a step, and ends."""

import numpy as np
import pytest

from webrtc.bridge import FULL, HISTORY, LENGTH, LONGEST, MS, SHORTEST, Extension, Samples


def vowel(count: int, hz: float) -> Samples:
    phase = 2 * np.pi * hz * np.arange(count) / 48000
    return np.asarray(0.1 * sum(np.sin(n * phase + n) / n for n in range(1, 12)), np.float32)


@pytest.mark.parametrize("hz", [70.0, 123.0, 220.0, 390.0])
def test_a_voice_goes_on_in_its_pitch(hz: float) -> None:
    sound = vowel(HISTORY + FULL, hz)
    extension = Extension(sound[:HISTORY])
    assert np.corrcoef(extension.next(FULL), sound[HISTORY:])[0, 1] > 0.97  # its period is a whole number of samples


@pytest.mark.parametrize("sound", [vowel(HISTORY, 173.0), np.random.default_rng(1).normal(0, 0.1, HISTORY)])
def test_no_step_is_steeper_than_the_sound(sound: Samples) -> None:
    bridged = np.concatenate((sound, Extension(sound.astype(np.float32)).next(LENGTH + MS)))
    assert np.abs(np.diff(bridged)).max() <= 1.05 * np.abs(np.diff(sound)).max()


def test_it_falls_silent() -> None:
    extension = Extension(vowel(HISTORY, 120.0))
    loud, fading = extension.next(FULL), extension.next(LENGTH - FULL)
    assert extension.over
    assert np.abs(fading[-5 * MS :]).max() < 0.2 * np.abs(loud).max()
    assert not extension.next(100).any()


def test_pieces_of_any_size_are_one_sound() -> None:
    past = vowel(HISTORY, 150.0)
    whole, pieces = Extension(past), Extension(past)
    expected = whole.next(LENGTH)
    sizes = [1, 7, 500, 960, 300]
    sizes.append(LENGTH - sum(sizes))
    np.testing.assert_array_equal(np.concatenate([pieces.next(size) for size in sizes]), expected)


def test_silence_stays_silence() -> None:
    assert not Extension(np.zeros(HISTORY, np.float32)).next(LENGTH).any()


def test_its_periods_are_those_of_voices() -> None:
    assert 48000 / LONGEST < 70 and 48000 / SHORTEST >= 400

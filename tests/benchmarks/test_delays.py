"""Delays that are known are found again, in sound that came back unchanged, changed, and not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr

from benchmarks import delays
from benchmarks.impair import Network
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

SOURCES = Path(__file__).parents[2] / "samples" / "sources"


@pytest.fixture(scope="module")
def speech() -> Samples:
    samples, rate = decode_file(SOURCES / "bakery.flac")
    return np.asarray(soxr.resample(samples, rate, delays.RATE_HZ), np.float32)


def later(sound: Samples, delay_ms: float) -> Samples:
    return np.concatenate((np.zeros(round(delay_ms * delays.RATE_HZ / 1000), np.float32), sound))


@pytest.mark.parametrize("delay_ms", [0.0, 123.4, 460.0, 1000.0])
def test_waves_that_come_back_unchanged_are_placed_within_a_tenth_of_a_millisecond(
    speech: Samples, delay_ms: float
) -> None:
    found = delays.of_waves(speech, later(speech, delay_ms))
    assert found
    assert all(abs(delay.delay_ms - delay_ms) < 0.1 for delay in found)


def test_words_are_found_in_another_voice(speech: Samples) -> None:
    higher = soxr.resample(later(speech, 321.0), 5, 4)  # another pitch and timbre ...
    slower = np.interp(
        np.arange(len(later(speech, 321.0))) * 0.8, np.arange(len(higher)), higher
    )  # ... in its old time
    noisy = slower + np.random.default_rng(1).normal(0, 0.003, len(slower))
    found = delays.of_words(speech, noisy.astype(np.float32))
    assert found
    assert abs(delays.spread(found)["p50_ms"] - 321.0) < 10.0  # type: ignore[operator]  # there are windows


def test_what_was_never_said_is_not_found(speech: Samples) -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, len(speech)).astype(np.float32)
    assert delays.of_waves(speech, noise) == []
    assert delays.of_words(np.zeros_like(speech), speech) == []
    assert delays.spread([])["windows"] == 0


def test_a_network_loses_and_delays_as_it_says() -> None:
    network = Network(loss=0.2, jitter_ms=30.0, delay_ms=50.0)
    fates = [network.fate_s() for _ in range(5000)]
    kept = np.array([fate for fate in fates if fate is not None])
    assert abs(1 - len(kept) / len(fates) - 0.2) < 0.02
    assert kept.min() >= 0.050 and kept.max() <= 0.080
    assert abs(kept.mean() - 0.065) < 0.002

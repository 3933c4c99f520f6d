"""Capture times: steady under jitter, following drift, starting again after a pause."""

from __future__ import annotations

import numpy as np
import pytest

from stages.clock import CaptureClock
from stages.geometry import CONTENT_RATE, TICK_16K


def errors_s(arrivals_s: np.ndarray) -> np.ndarray:
    """How far the estimate is from the end of a packet of 20 ms, at each of them."""
    clock, errors = CaptureClock(), []
    for i, now_s in enumerate(arrivals_s):
        clock.heard((i + 1) * TICK_16K, now_s)
        errors.append(clock.at((i + 1) * TICK_16K) - (i + 1) * 0.02)
    return np.array(errors)


def test_even_packets_are_captured_when_they_come() -> None:
    assert np.allclose(errors_s(100 + np.arange(1, 500) * 0.02), 100)


def test_jitter_is_not_taken_for_time() -> None:
    jitter = np.random.default_rng(0).exponential(0.008, 3000)
    errors = errors_s(np.maximum.accumulate(np.arange(1, 3001) * 0.02 + jitter))[100:]
    assert errors.min() >= 0
    assert errors.max() <= 0.006
    assert np.abs(np.diff(errors)).max() <= 0.005


@pytest.mark.parametrize("ppm", [-200, 200])
def test_a_clock_that_is_off_is_followed(ppm: int) -> None:
    truth = np.arange(1, 30001) * 0.02 * (1 + ppm * 1e-6)
    estimated = errors_s(truth) + np.arange(1, 30001) * 0.02
    assert np.abs(estimated - truth).max() <= 0.001  # after ten minutes too


def test_a_pause_moves_the_time() -> None:
    arrivals = np.arange(1, 201) * 0.02
    arrivals[100:] += 30.0
    errors = errors_s(arrivals)
    assert np.allclose(errors[:100], 0)
    assert np.allclose(errors[100:], 30)


def test_a_stall_does_not() -> None:
    arrivals = np.arange(1, 201) * 0.02
    arrivals[100:115] = arrivals[115]  # 0.3 s of sound at once
    assert np.abs(errors_s(arrivals)[120:]).max() <= 1e-9
    clock = CaptureClock()
    clock.heard(CONTENT_RATE, 1.0)
    assert clock.at(CONTENT_RATE // 2) == pytest.approx(0.5)

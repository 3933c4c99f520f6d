"""Silence in, silence out: gains that close where the source has been silent, computed from the source alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.geometry import TICK_16K, TICK_MODEL
from stages.types import Samples

SILENCE_PEAK = 10 ** (-70 / 20)
HOLD_TICKS = 10
"""Silence lasts this long (200 ms) before the gate closes, since the end of a word rings on."""
AHEAD_TICKS = 1


def tick_gains(source_16k: Samples) -> NDArray[np.float32]:
    """Gain 0 or 1 for each tick of a source at 16 kHz; before its start it counts as silent."""
    n_ticks = -(-len(source_16k) // TICK_16K)
    padded = np.zeros(n_ticks * TICK_16K, np.float32)
    padded[: len(source_16k)] = source_16k
    loud = np.abs(padded).reshape(n_ticks, TICK_16K).max(axis=1) > SILENCE_PEAK
    return widened(loud, HOLD_TICKS, AHEAD_TICKS)


def widened(flags: NDArray[np.bool_], hold: int, ahead: int) -> NDArray[np.float32]:
    """Gain 1 for each flagged tick, `hold` ticks after it and `ahead` ticks before it, else 0."""
    around = np.convolve(flags, np.ones(hold + ahead + 1))  # reaches from t - hold to t + ahead
    return (around[ahead : ahead + len(flags)] > 0.5).astype(np.float32)


def apply_gains(
    wave: Samples, gains: NDArray[np.float32], start_tick: float = 0.0, ticks_per_tick: float = 1.0
) -> Samples:
    """Multiply wave [samples] at 22.05 kHz by the tick gains, straight lines between the ticks' centres.

    The wave's first sample lies at `start_tick` of the source. One tick of the wave is `ticks_per_tick` of the source.
    """
    if gains.all():
        return wave
    at = start_tick + (np.arange(len(wave)) + 0.5) * (ticks_per_tick / TICK_MODEL)
    return np.asarray(wave * np.interp(at, np.arange(len(gains)) + 0.5, gains), np.float32)

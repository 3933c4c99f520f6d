"""How far a quiet speaker is raised, so that the networks hear it as others.

The encoder and the detector of speech learnt from speech of the usual levels. Quieter speech is raised to them, but
never so far that the noise behind it sounds like speech.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from stages.types import Samples

LOUDEST_DB, NOISE_DB, MOST_DB = -25.0, -45.0, 60.0
"""Targets in dB RMS: level of the loudest ticks, ceiling of the quietest, largest gain."""
LOUD_TICKS, QUIET_SHARE = 5, 0.1
"""How many loudest ticks are ignored as clicks, and the share of ticks that counts as noise."""
MEMORY_TICKS = 500
SILENCE = 1e-10
"""Quieter ticks (mean square) do not count: a microphone is muted, or a client cuts pauses out."""


def powers(wave: Samples, step: int) -> NDArray[np.float64]:
    """Mean square of each whole or begun `step` samples."""
    n = -(-len(wave) // step)
    padded = np.zeros(n * step)
    padded[: len(wave)] = wave
    return np.asarray(np.mean(np.square(padded.reshape(n, step)), axis=1))


def lift(power: NDArray[np.float64], loud_ticks: int = 0) -> float:
    """Gain of at least 1 for a sound whose ticks have these mean squares [n]; `loud_ticks` of them may be clicks."""
    power = power[power > SILENCE]
    if not len(power):
        return 1.0
    n_loud, n_quiet = min(loud_ticks, len(power) - 1), int(QUIET_SHARE * len(power))
    order = np.partition(power, [n_quiet, len(power) - 1 - n_loud])
    noise_db, loud_db = 10 * np.log10(order[[n_quiet, -1 - n_loud]])
    gain_db = min(LOUDEST_DB - loud_db, NOISE_DB - noise_db, MOST_DB)
    return float(10 ** (max(0.0, gain_db) / 20))


def raised(wave: Samples, gain: float) -> Samples:
    """The wave times the gain; the wave itself at gain 1."""
    return wave if gain == 1.0 else wave * np.float32(gain)


class RecentLevel:
    """The same for a call, from its last 10 s."""

    def __init__(self) -> None:
        self._power: deque[float] = deque(maxlen=MEMORY_TICKS)

    def push(self, power: float) -> float:
        """Take the mean square of one more tick; its gain."""
        self._power.append(power)
        return lift(np.fromiter(self._power, np.float64), LOUD_TICKS)

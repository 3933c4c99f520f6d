"""Finds speech in a call. Only speech and what is around it goes to the networks."""

from __future__ import annotations

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from stages.gate import SILENCE_PEAK, widened
from stages.geometry import CONTENT_RATE, TICK_16K
from stages.quiet import RecentLevel
from stages.types import Samples

AGGRESSIVENESS = 2
"""0 to 3. Lower lets noise up to -40 dBFS pass; 3 drops soft consonants."""
HOLD_TICKS = 12
"""Ticks kept after speech (240 ms), for quiet word ends and pauses inside a sentence."""
AHEAD_TICKS = 4
"""Ticks kept before speech (80 ms, the look-ahead of a block), since soft beginnings are recognised late."""


class SpeechGate:
    """Gains 0 or 1 for each tick of a call's windows, by WebRTC's voice activity detector; remembers 10 s of levels."""

    def __init__(self) -> None:
        self._detector = webrtcvad.Vad(AGGRESSIVENESS)
        self._level = RecentLevel()
        self._flags = np.zeros(0, bool)

    def __call__(self, window: Samples, new_ticks: int) -> NDArray[np.float32]:
        """Gains of all ticks of a window at 16 kHz whose last `new_ticks` have not been seen before."""
        n_ticks = len(window) // TICK_16K
        flags = [self._is_speech(tick) for tick in window[-new_ticks * TICK_16K :].reshape(new_ticks, TICK_16K)]
        known = np.concatenate([np.zeros(n_ticks, bool), self._flags, flags])
        self._flags = known[-n_ticks:]
        return widened(self._flags, HOLD_TICKS, AHEAD_TICKS)

    def _is_speech(self, tick: Samples) -> bool:
        """Asks the detector, with quiet speech raised, since it does not hear that. Silence is never speech."""
        gain = self._level.push(float(np.mean(np.square(tick, dtype=np.float64))))
        pcm = (np.clip(tick * gain, -1, 1) * 32767).astype("<i2")
        is_speech = self._detector.is_speech(pcm.tobytes(), CONTENT_RATE)  # asked in silence too: it adapts to it
        return bool(is_speech and np.abs(tick).max() > SILENCE_PEAK)

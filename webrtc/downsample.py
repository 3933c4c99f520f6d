"""48 to 16 kHz, piece by piece: each third sample of a low-passed signal, delayed by the filter only.

soxr's streams work in larger pieces: they hold back 11 ms (LQ, up to 20) or 21 ms (MQ and HQ, up to 38).
"""

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Samples = NDArray[np.float32]  # (T,) mono

FACTOR: Final = 3
TAPS: Final = 175
CUT_OFF_HZ: Final = 7500.0
BETA: Final = 6.2  # of the Kaiser window: 65 dB down from 8 kHz on, flat to 0.1 dB up to 7 kHz
DELAY_S: Final = (TAPS - 1) / 2 / 48000  # 1.8 ms


def _low_pass() -> Samples:
    """The filter's taps, symmetric, with a sum of one."""
    at = np.arange(TAPS) - (TAPS - 1) / 2
    taps = np.sinc(2 * CUT_OFF_HZ / 48000 * at) * np.kaiser(TAPS, BETA)
    return np.asarray(taps / taps.sum(), np.float32)


class Downsampler:
    """One stream; the result does not depend on how it is cut into pieces."""

    def __init__(self) -> None:
        self._taps = _low_pass()
        self._past = np.zeros(TAPS - FACTOR, np.float32)

    def __call__(self, samples: Samples) -> Samples:
        """A third as many samples; the number given is a multiple of three."""
        if len(samples) % FACTOR:
            raise ValueError(f"the number of samples is a multiple of {FACTOR}, not {len(samples)}")
        sound = np.concatenate([self._past, samples])
        self._past = sound[len(sound) - len(self._past) :].copy()
        if not len(samples):
            return samples
        low: Samples = sliding_window_view(sound, TAPS)[::FACTOR] @ self._taps
        return low

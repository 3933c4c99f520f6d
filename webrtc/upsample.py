"""22.05 to 48 kHz, piece by piece: 320 samples for each 147, by one matrix product, with a short and constant delay.

soxr's streams either hold back 5 to 42 ms (MQ, HQ) or 11 ms (variable rate), or lose the top (LQ: 0.9 ms, but -3.5 dB
at 9 kHz and -22 dB at 10 kHz, where consonants have their edge).
"""

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from configs.schema import MODEL_RATE

Samples = NDArray[np.float32]  # (T,) mono

RATE_IN_HZ: Final = MODEL_RATE
RATE_OUT_HZ: Final = 48000
PERIOD_IN: Final = 147  # samples: 20 ms are three periods
PERIOD_OUT: Final = 320
TAPS: Final = 48
CUT_OFF_HZ: Final = 10600.0
BETA: Final = 5.6  # of the Kaiser window: images are 60 dB down from 11.5 kHz on, flat to 0.1 dB up to 9.7 kHz
DELAY_S: Final = TAPS / 2 / RATE_IN_HZ  # 1.1 ms
_PAST: Final = TAPS - 1


def _phases() -> Samples:
    """Weights of past and new input samples [_PAST + PERIOD_IN] in each output sample of a period; rows sum to one."""
    position = np.arange(PERIOD_OUT)[:, None] * PERIOD_IN / PERIOD_OUT - TAPS / 2
    at = position - (np.arange(_PAST + PERIOD_IN) - _PAST)
    window = np.i0(BETA * np.sqrt(np.clip(1 - (2 * at / TAPS) ** 2, 0, None))) * (np.abs(at) < TAPS / 2)
    taps = np.sinc(2 * CUT_OFF_HZ / RATE_IN_HZ * at) * window
    return np.asarray(taps / taps.sum(axis=1, keepdims=True), np.float32)


_PHASES: Final = _phases()


class Upsampler:
    """One stream; how it is cut into pieces changes no sample. Less than a period of the input waits for more."""

    def __init__(self) -> None:
        self._past = np.zeros(_PAST, np.float32)

    def __call__(self, samples: Samples) -> Samples:
        """The output of all whole periods so far."""
        sound = np.concatenate([self._past, samples])
        periods = (len(sound) - _PAST) // PERIOD_IN
        self._past = sound[periods * PERIOD_IN :]
        if periods == 0:
            return np.zeros(0, np.float32)
        pieces = sliding_window_view(sound, _PAST + PERIOD_IN)[: periods * PERIOD_IN : PERIOD_IN]
        high: Samples = (np.ascontiguousarray(pieces) @ _PHASES.T).reshape(-1)  # contiguous: BLAS takes nothing else
        return high

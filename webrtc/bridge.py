"""What is played while a block is late: the sound goes on as it was, period by period, and falls silent.

Waveform substitution (Goodman et al. 1986; ITU-T G.711 Appendix I), with no delay of its own. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from webrtc.upsample import RATE_OUT_HZ

Samples = NDArray[np.float32]  # (T,) mono, full scale at 1

MS = RATE_OUT_HZ // 1000
SHORTEST, LONGEST = 5 * MS // 2, 15 * MS
"""Periods that are repeated: voices of 67 to 400 Hz. Where there is none, any stretch does for so long."""
TEMPLATE = 10 * MS
"""The end of the sound, which is looked for further back."""
HISTORY = TEMPLATE + LONGEST
"""Samples that are looked at."""
ALIGN = 2 * MS
"""Over which each repetition comes from where the sound ended: by as much as it differs from one period before."""
FULL = 20 * MS
LENGTH = 60 * MS
"""As loud as it was for `FULL`, then ever quieter, silent from here on."""


class Extension:
    """The further course of one sound."""

    def __init__(self, past: Samples) -> None:
        """`past` is the sound's last `HISTORY` samples or more."""
        lag = _period(past[-HISTORY:])
        step = past[-1] - past[-lag - 1]
        self._cycle = past[-lag:] + step * np.clip(1 - np.arange(lag) / ALIGN, 0, None)
        self.made = 0
        """Samples so far."""

    @property
    def over(self) -> bool:
        """Whether only silence would follow."""
        return self.made >= LENGTH

    def next(self, count: int) -> Samples:
        """The next `count` samples."""
        at = np.arange(self.made, self.made + count)
        self.made += count
        gain = np.clip((LENGTH - at) / (LENGTH - FULL), 0, 1)
        return np.asarray(self._cycle[at % len(self._cycle)] * gain, np.float32)


def _period(past: Samples) -> int:
    """The lag at which the end of the sound resembles what came before it most."""
    template = past[-TEMPLATE:].astype(np.float64)
    earlier = past[:-SHORTEST].astype(np.float64)  # its last TEMPLATE samples are one shortest period ago
    energy = np.cumsum(np.concatenate(([0.0], earlier**2)))
    energy = energy[TEMPLATE:] - energy[:-TEMPLATE]
    alike = np.correlate(earlier, template) / np.sqrt(energy + 1e-9)
    return SHORTEST + len(alike) - 1 - int(np.argmax(alike))

"""What lies below every voice is taken out of a source: a constant offset, rumble, the wind in a microphone.

It would count as loudness, keep the gates open and hide a quiet voice from the networks.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from stages.geometry import CONTENT_RATE
from stages.types import Samples

CUTOFF_HZ = 40.0
"""Half the power is left there; a bass voice of 60 Hz loses 0.2 dB, what shakes a stand at 15 Hz 34 dB."""
QUALITIES = (0.5411961, 1.3065630)
"""Of the two sections of a Butterworth filter of fourth order."""
STEP = 80
"""Samples that are filtered at once, 5 ms: a whole tick is four of them."""

Matrix = NDArray[np.float64]


class HighPass:
    """Filters a growing source at 16 kHz without delay; only its last piece may be no whole number of 5 ms."""

    def __init__(self) -> None:
        self._state: Matrix | None = None

    def push(self, samples: Samples) -> Samples:
        """The same number of samples, less what is below 40 Hz."""
        if not len(samples):
            return samples
        steps = np.zeros(-(-len(samples) // STEP) * STEP)
        steps[: len(samples)] = samples
        from_past, from_new, kept, taken, constant = _matrices()
        if self._state is None:  # what a source begins with has always been there: else its offset would thump
            self._state = constant * float(np.mean(samples[: 4 * STEP]))
        heard = np.empty_like(steps)
        for start in range(0, len(steps), STEP):
            new = steps[start : start + STEP]
            heard[start : start + STEP] = from_past @ self._state + from_new @ new
            self._state = kept @ self._state + taken @ new
        return heard[: len(samples)].astype(np.float32)


@cache
def _matrices() -> tuple[Matrix, Matrix, Matrix, Matrix, Matrix]:
    """A step's output from the state [step, 4] and from its samples [step, step]; the state after it from the state
    before [4, 4] and from its samples [4, step]; the state [4] of a lasting offset of one."""
    a, b, c, d = _state_space()
    powers = [np.eye(len(a))]
    for _ in range(STEP):
        powers.append(a @ powers[-1])
    response: Matrix = np.array([d, *(c @ power @ b for power in powers[: STEP - 1])])
    lag = np.subtract.outer(np.arange(STEP), np.arange(STEP))
    from_past = np.stack([c @ power for power in powers[:STEP]])
    from_new: Matrix = np.where(lag >= 0, response[lag], 0.0)
    taken = np.stack([power @ b for power in reversed(powers[:STEP])], axis=1)
    constant = np.asarray(np.linalg.solve(np.eye(len(a)) - a, b), np.float64)
    return from_past, from_new, powers[STEP], taken, constant


def _state_space() -> tuple[Matrix, Matrix, Matrix, float]:
    """Both sections one after the other: next state = a @ state + b * x, output = c @ state + d * x."""
    (a1, b1, c1, d1), (a2, b2, c2, d2) = (_section(quality) for quality in QUALITIES)
    a = np.block([[a1, np.zeros((2, 2))], [np.outer(b2, c1), a2]])
    return a, np.concatenate([b1, b2 * d1]), np.concatenate([d2 * c1, c2]), d1 * d2


def _section(quality: float) -> tuple[Matrix, Matrix, Matrix, float]:
    """A high-pass of second order by the bilinear transform, in transposed direct form."""
    angle = 2 * np.pi * CUTOFF_HZ / CONTENT_RATE
    slope = np.sin(angle) / (2 * quality)
    gain = (1 + np.cos(angle)) / 2 / (1 + slope)
    back = np.array([-2 * np.cos(angle), 1 - slope]) / (1 + slope)
    a = np.array([[-back[0], 1.0], [-back[1], 0.0]])
    return a, np.array([-2 * gain - back[0] * gain, gain - back[1] * gain]), np.array([1.0, 0.0]), float(gain)

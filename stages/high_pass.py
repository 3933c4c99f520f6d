"""Takes out of a source what lies below every voice: a constant offset, rumble, wind in a microphone.

Such sound would count as loudness, keep the gates open and hide a quiet voice. A small vocoder adds an offset, which is
taken out of the result in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stages.geometry import CONTENT_RATE, HOP, MODEL_RATE, TICK_16K, TICK_MODEL, TICKS_PER_S
from stages.types import Samples

BUTTERWORTH = (0.5411961, 1.3065630)
"""Qualities of the two sections of a filter of fourth order."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Half the power is left at `cutoff_hz`. Without `qualities` the filter is one of first order.

    `step` samples are filtered at once. Where it is `settled`, the first tick's offset counts as the past, so that it
    makes no thump; else silence does.
    """

    rate: int
    step: int
    cutoff_hz: float
    qualities: tuple[float, ...] = ()
    settled: bool = False


SOURCE = Design(CONTENT_RATE, TICK_16K // 4, 40.0, BUTTERWORTH, settled=True)
"""A bass voice of 60 Hz loses 0.2 dB, the shaking of a stand at 15 Hz 34 dB."""
RESULT_BLOCKS = Design(MODEL_RATE, TICK_MODEL // 3, 20.0)
RESULT_CHUNKS = Design(MODEL_RATE, HOP // 2, 20.0)
"""An offset comes and goes with the voice; a steeper filter would ring on into the pause behind each word."""


class HighPass:
    """Filters growing sound without delay; only its last piece may be no whole number of steps.

    Within the first step of zeros it falls silent and forgets what came before: silence stays silent.
    """

    def __init__(self, design: Design = SOURCE) -> None:
        self._design = design
        self._fade = 1 - np.arange(1, design.step + 1) / design.step
        self._state: Matrix | None = None

    def push(self, samples: Samples) -> Samples:
        """The same number of samples, less what is below the cut-off."""
        if not len(samples):
            return samples
        size = self._design.step
        steps = np.zeros(-(-len(samples) // size) * size)
        steps[: len(samples)] = samples
        from_past, from_new, kept, taken, constant = _matrices(self._design)
        state = self._state
        if state is None:  # the first tick's offset counts as the past, so that it makes no thump
            offset = float(np.mean(samples[: self._design.rate // TICKS_PER_S])) if self._design.settled else 0.0
            state = constant * offset
        heard = np.empty_like(steps)
        for start in range(0, len(steps), size):
            new = steps[start : start + size]
            if new.any():
                heard[start : start + size] = from_past @ state + from_new @ new
                state = kept @ state + taken @ new
            else:
                heard[start : start + size] = from_past @ state * self._fade
                state = np.zeros_like(state)
        self._state = state
        return heard[: len(samples)].astype(np.float32)


@cache
def _matrices(design: Design) -> tuple[Matrix, Matrix, Matrix, Matrix, Matrix]:
    """A step's output from the state [step, order] and from its samples [step, step]; the state after it from the state
    before [order, order] and from its samples [order, step]; the state [order] of a lasting offset of one."""
    (a, b, c, d), step = _state_space(design), design.step
    powers = [np.eye(len(a))]
    for _ in range(step):
        powers.append(a @ powers[-1])
    response: Matrix = np.array([d, *(c @ power @ b for power in powers[: step - 1])])
    lag = np.subtract.outer(np.arange(step), np.arange(step))
    from_past = np.stack([c @ power for power in powers[:step]])
    from_new: Matrix = np.where(lag >= 0, response[lag], 0.0)
    taken = np.stack([power @ b for power in reversed(powers[:step])], axis=1)
    constant = np.asarray(np.linalg.solve(np.eye(len(a)) - a, b), np.float64)
    return from_past, from_new, powers[step], taken, constant


def _state_space(design: Design) -> tuple[Matrix, Matrix, Matrix, float]:
    """All sections one after the other: next state = a @ state + b * x, output = c @ state + d * x."""
    angle = 2 * np.pi * design.cutoff_hz / design.rate
    if not design.qualities:
        return _first_order(angle)
    (a1, b1, c1, d1), *others = (_section(quality, angle) for quality in design.qualities)
    for a2, b2, c2, d2 in others:
        a1 = np.block([[a1, np.zeros((len(a1), 2))], [np.outer(b2, c1), a2]])
        b1, c1, d1 = np.concatenate([b1, b2 * d1]), np.concatenate([d2 * c1, c2]), d1 * d2
    return a1, b1, c1, d1


def _first_order(angle: float) -> tuple[Matrix, Matrix, Matrix, float]:
    """A high-pass of first order by the bilinear transform, in transposed direct form."""
    slope = np.tan(angle / 2)
    gain, back = 1 / (1 + slope), (1 - slope) / (1 + slope)
    return np.array([[back]]), np.array([(back - 1) * gain]), np.ones(1), float(gain)


def _section(quality: float, angle: float) -> tuple[Matrix, Matrix, Matrix, float]:
    """One of second order in the same form."""
    slope = np.sin(angle) / (2 * quality)
    gain = (1 + np.cos(angle)) / 2 / (1 + slope)
    back = np.array([-2 * np.cos(angle), 1 - slope]) / (1 + slope)
    a = np.array([[-back[0], 1.0], [-back[1], 0.0]])
    return a, np.array([-2 * gain - back[0] * gain, gain - back[1] * gain]), np.array([1.0, 0.0]), float(gain)

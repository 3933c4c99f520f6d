"""Makes the output as loud as the source. The networks alone speak as loudly as the voice's reference.

Both loudnesses are followed with a memory of a second, so that syllables keep their own shape and no gain jumps. The
output is turned down without a limit, but up by 6 dB at most and never beyond full scale, so that noise under a quiet
source stays quiet.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stages.blocks import BlockWindow
from stages.geometry import CONTENT_RATE, HOP, MODEL_RATE, TICK_16K, TICK_MODEL
from stages.models import mel_match
from stages.quiet import powers
from stages.types import Samples

MEMORY_S = 1.0
MAX_GAIN = 2.0
POWER_FLOOR = 1e-9
"""-90 dB: quieter sounds count as equally loud."""


class LevelFollower:
    """Remembers how loud the source and the networks' sound were lately."""

    def __init__(self) -> None:
        self._source = self._made = 0.0

    def block(self, wave: Samples, window: BlockWindow) -> Samples:
        """The stitcher's slice of a call's block, no louder than its source."""
        source = window.returned_ticks(powers(window.samples, TICK_16K))
        gains = self._gains(source, powers(wave, TICK_MODEL), TICK_16K / CONTENT_RATE, window.geometry.block_ticks)
        return _scaled(wave, gains, TICK_MODEL)

    def chunk(
        self, wave: Samples, source_power: NDArray[np.float64], first_tick: float, ticks_per_tick: float, n_final: int
    ) -> Samples:
        """A chunk of a recording, of which `n_final` samples are not made again; powers of its window's ticks."""
        made = powers(wave, HOP)
        at = first_tick + (np.arange(len(made)) + 0.5) * (HOP / TICK_MODEL * ticks_per_tick)
        source = np.interp(at, np.arange(len(source_power)) + 0.5, source_power)
        return _scaled(wave, self._gains(source, made, HOP / MODEL_RATE, n_final // HOP), HOP)

    def _gains(
        self, source: NDArray[np.float64], made: NDArray[np.float64], step_s: float, n_final: int
    ) -> NDArray[np.float64]:
        """A gain for each step. Remembers the state after the final steps."""
        kept = float(np.exp(-step_s / MEMORY_S))
        gains, a, b = np.ones(len(made)), self._source, self._made
        for i in range(len(made)):
            a, b = kept * a + step_s * source[i], kept * b + step_s * made[i]
            gains[i] = min(MAX_GAIN, np.sqrt((a + POWER_FLOOR) / (b + POWER_FLOOR)))
            if i == n_final - 1:
                self._source, self._made = a, b
        return gains


def _scaled(wave: Samples, gains: NDArray[np.float64], step: int) -> Samples:
    at = (np.arange(len(wave)) + 0.5) / step
    return limited(np.asarray(wave * np.interp(at, np.arange(len(gains)) + 0.5, gains), np.float32))


def limited(wave: Samples) -> Samples:
    """Peaks bent smoothly below full scale; the rest stays as it is."""
    return mel_match.limited(torch.from_numpy(wave)).numpy()

"""BlockMaker: packets of any size to overlapping windows of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.geometry import TICK_16K, Geometry
from stages.high_pass import HighPass
from stages.pitch import QUIET, UsualPitch
from stages.quiet import lift, powers
from stages.types import Samples


@dataclass(frozen=True)
class BlockWindow:
    """One block with its context: samples [window] at 16 kHz, ending at `end_tick` of the stream.

    `usual_hz` is the speaker's median pitch, once it is known; `lift` is how much louder the encoder should hear it.
    """

    samples: Samples
    end_tick: int
    geometry: Geometry
    usual_hz: float | None = None
    lift: float = 1.0

    def returned_ticks(self, per_tick: np.ndarray) -> np.ndarray:
        """The values of the ticks that the stitcher gets, out of one value for each tick of the window."""
        first = self.geometry.window_ticks - self.geometry.right_ticks - self.geometry.return_ticks
        return per_tick[first : first + self.geometry.return_ticks]


class BlockMaker:
    """Remembers past sound at 16 kHz; gives a window for each complete block. Silence lies before the start."""

    def __init__(self, geometry: Geometry, high_pass: bool = False) -> None:
        self._geometry = geometry
        self._high_pass = HighPass() if high_pass else None
        self._past = np.zeros(geometry.window_samples_16k, np.float32)
        self._new = np.zeros(0, np.float32)
        self._end_tick = 0
        self._pitch = UsualPitch()

    @property
    def n_samples(self) -> int:
        """How many samples have come."""
        return self._end_tick * TICK_16K + len(self._new)

    def resize(self, geometry: Geometry) -> None:
        """Make blocks of another size out of the same window, from the next block on; no sample is lost."""
        if geometry.window_ticks != self._geometry.window_ticks:
            raise ValueError(f"the window is {self._geometry.window_ticks} ticks long, got {geometry.window_ticks}")
        self._geometry = geometry

    def push(self, samples: Samples) -> Iterator[BlockWindow]:
        """Take samples of any number; yield the windows that they complete, in order."""
        self._new = np.concatenate([self._new, samples])
        while len(self._new) >= (size := self._geometry.block_samples_16k):
            new, self._new = self._new[:size], self._new[size:]
            heard = self._high_pass.push(new) if self._high_pass else new
            self._past = np.concatenate([self._past[size:], heard])
            self._end_tick += self._geometry.block_ticks
            power = powers(self._past, TICK_16K)
            if power[-self._geometry.block_ticks :].max() > QUIET**2 * power.max():
                self._pitch.push(self._past[-size:])
            else:  # a pause's hum is no speaker's pitch
                self._pitch.rest(self._geometry.block_ticks)
            yield BlockWindow(self._past, self._end_tick, self._geometry, self._pitch.hz, lift(power))

"""BlockMaker: packets of any size to overlapping windows of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.geometry import Geometry
from stages.types import Samples


@dataclass(frozen=True)
class BlockWindow:
    """One block with its context: samples [window] at 16 kHz, ending at `end_tick` of the stream."""

    samples: Samples
    end_tick: int


class BlockMaker:
    """Remembers past sound at 16 kHz; gives a window for each complete block. Silence lies before the start."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._past = np.zeros(geometry.window_samples_16k - geometry.block_samples_16k, np.float32)
        self._new = np.zeros(0, np.float32)
        self._end_tick = 0

    def push(self, samples: Samples) -> Iterator[BlockWindow]:
        """Take samples of any number; yield the windows that they complete, in order."""
        size = self._geometry.block_samples_16k
        self._new = np.concatenate([self._new, samples])
        while len(self._new) >= size:
            window = np.concatenate([self._past, self._new[:size]])
            self._past, self._new = window[size:], self._new[size:]
            self._end_tick += self._geometry.block_ticks
            yield BlockWindow(window, self._end_tick)

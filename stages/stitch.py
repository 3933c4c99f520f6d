"""Joins: SOLA for the blocks of a call, a longer plain cross-fade for the chunks of a file."""

from __future__ import annotations

import numpy as np

from stages.geometry import SEARCH_TICKS, TICK_MODEL, Geometry
from stages.types import Samples

ENERGY_FLOOR = 1e-8


class Stitcher:
    """Aligns each block to the tail of the one before (SOLA, Roucos and Wilgus 1985) and cross-fades."""

    def __init__(self, geometry: Geometry) -> None:
        self._fade = geometry.sola_ticks * TICK_MODEL
        self._search = SEARCH_TICKS * TICK_MODEL
        self._fade_in = np.sin(np.pi / 2 * np.linspace(0, 1, self._fade)) ** 2
        self._fade_out = 1 - self._fade_in
        self._tail = np.zeros(self._fade)
        self.offset = 0
        """Where the last block was found to fit, in samples from 0 to the search length."""

    def push(self, wave: Samples) -> Samples:
        """Returned slice [block + fade + search] of a block of any size to its final samples [block]."""
        block = len(wave) - self._fade - self._search
        self.offset = self._best_offset(wave)
        aligned = wave[self.offset :].astype(np.float64)
        aligned[: self._fade] = aligned[: self._fade] * self._fade_in + self._tail * self._fade_out
        self._tail = aligned[block : block + self._fade]
        return aligned[:block].astype(np.float32)

    def conceal(self, n_samples: int) -> Samples:
        """Samples [n] in place of a block that was lost: fade out, then silence; the next block fades in."""
        out = np.zeros(max(n_samples, self._fade))
        out[: self._fade] = self._tail * self._fade_out
        self._tail = np.concatenate([out[n_samples:], np.zeros(self._fade)])[: self._fade]
        return out[:n_samples].astype(np.float32)

    def _best_offset(self, wave: Samples) -> int:
        """First offset of the highest signed correlation with the tail, normalised by the candidate's energy."""
        head = wave[: self._fade + self._search].astype(np.float64)
        correlation = np.correlate(head, self._tail)
        energy = np.convolve(head**2, np.ones(self._fade), mode="valid")
        return int(np.argmax(correlation / np.sqrt(energy + ENERGY_FLOOR)))


class ChunkJoiner:
    """Cross-fades consecutive chunks that overlap by a fixed number of samples (complementary cos^2)."""

    def __init__(self, overlap_samples: int) -> None:
        self._fade_in = np.cos(np.linspace(np.pi / 2, 0, overlap_samples)) ** 2
        self._fade_out = np.cos(np.linspace(0, np.pi / 2, overlap_samples)) ** 2
        self._tail: np.ndarray | None = None

    def push(self, wave: Samples, last: bool) -> Samples:
        """The final samples of a chunk [samples]: all but the overlap, or all of the last chunk."""
        joined = wave.astype(np.float64)
        if self._tail is not None:
            n = min(len(self._tail), len(joined))
            joined[:n] = joined[:n] * self._fade_in[:n] + self._tail[:n] * self._fade_out[:n]
        if last:
            return joined.astype(np.float32)
        n_final = len(joined) - len(self._fade_in)
        self._tail = joined[n_final:].copy()  # a view would keep the whole chunk
        return joined[:n_final].astype(np.float32)

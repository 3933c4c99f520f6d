"""How late a sound comes out: the same words are looked for in what was said and in what was heard.

A converted voice has other pitch and other waves, so waves are compared only where the sound came back unconverted;
else the rises of its energy are, in bands, over windows of several words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from webrtc.files.codecs import Samples

RATE_HZ = 48000
HOP_MS = 5
WORK_HZ = 16000
_HOP = WORK_HZ * HOP_MS // 1000
_N_FFT = 512
BAND_EDGES_HZ = (200, 400, 650, 950, 1350, 1850, 2500, 3300, 4300, 5500, 7000)
FLOOR = 1e-6
"""Energy per band below which there is nothing to hear, for a full scale of 1."""
WINDOW_S, STEP_S = 3.0, 1.0
LONGEST_S = 1.5
LEAST_LIKENESS_OF_WORDS, LEAST_LIKENESS_OF_WAVES = 0.45, 0.25
"""Of the best place; below it the sound was not found again and nothing is told. Noise reaches 0.35 as words."""

Curves = NDArray[np.float64]


@dataclass(frozen=True)
class Delay:
    """One window's delay."""

    at_s: float
    """Where the window begins in what was said."""
    delay_ms: float
    likeness: float


def of_words(said: Samples, heard: Samples, longest_s: float = LONGEST_S) -> list[Delay]:
    """Delays window by window, by the rises of energy; windows with too little speech are left out."""
    return _delays(_rises(said), _rises(heard), 1000 / HOP_MS, LEAST_LIKENESS_OF_WORDS, longest_s)


def of_waves(said: Samples, heard: Samples) -> list[Delay]:
    """The same by the waves themselves, for sound that comes back unconverted."""
    waves = [soxr.resample(x, RATE_HZ, WORK_HZ).astype(np.float64)[None] for x in (said, heard)]
    return _delays(waves[0], waves[1], WORK_HZ, LEAST_LIKENESS_OF_WAVES, LONGEST_S)


def _rises(sound: Samples) -> Curves:
    """How fast the level rises, in each band [bands, hops]."""
    wave = np.pad(soxr.resample(sound, RATE_HZ, WORK_HZ), _N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wave, _N_FFT)[::_HOP] * np.hanning(_N_FFT)
    power = np.abs(np.fft.rfft(frames)) ** 2 / _N_FFT
    edges = [int(round(hz * _N_FFT / WORK_HZ)) for hz in BAND_EDGES_HZ]
    bands = np.stack([power[:, low:high].mean(axis=1) for low, high in zip(edges, edges[1:], strict=False)])
    level = np.log(bands + FLOOR)
    level = np.apply_along_axis(lambda row: np.convolve(row, np.hanning(9) / 4, "same"), 1, level)
    return np.maximum(np.diff(level, axis=1, prepend=level[:, :1]), 0.0)


def _delays(said: Curves, heard: Curves, rate_hz: float, least: float, longest_s: float) -> list[Delay]:
    window, step, longest = (int(seconds * rate_hz) for seconds in (WINDOW_S, STEP_S, longest_s))
    length = min(said.shape[1], heard.shape[1])
    usual = float(np.median([(said[:, i : i + window] ** 2).sum() for i in range(0, length - window + 1, step)] or [0]))
    found = []
    for start in range(0, length - window - longest, step):
        part = said[:, start : start + window]
        if (part**2).sum() < 0.3 * usual or usual == 0:
            continue
        place, likeness = _place(part, heard[:, start : start + window + longest])
        if likeness >= least:
            found.append(Delay(start / rate_hz, place / rate_hz * 1000, likeness))
    return found


def _place(part: Curves, within: Curves) -> tuple[float, float]:
    """Where a part is found again [hops, between them], and how alike it is there, at most 1."""
    width = part.shape[1]
    size = 1 << int(np.ceil(np.log2(within.shape[1] + width)))
    spectra = np.conj(np.fft.rfft(part, size, axis=1)) * np.fft.rfft(within, size, axis=1)
    products = np.fft.irfft(spectra, size, axis=1).sum(axis=0)[: within.shape[1] - width + 1]
    energy = np.cumsum(np.concatenate(([0.0], (within**2).sum(axis=0))))
    norm = np.sqrt((energy[width:] - energy[: len(products)]) * (part**2).sum()) + 1e-12
    likeness = products / norm
    best = int(np.argmax(likeness))
    place = float(best)
    if 0 < best < len(likeness) - 1:
        before, at, after = likeness[best - 1 : best + 2]
        place += 0.5 * float(before - after) / (float(before - 2 * at + after) or 1.0)
    return place, float(likeness[best])


def spread(delays: list[Delay]) -> dict[str, float | int | None]:
    """p50 and p95 in ms, how many windows they come from, and how alike these were."""
    if not delays:
        return {"p50_ms": None, "p95_ms": None, "windows": 0, "likeness": None}
    p50, p95 = np.percentile([delay.delay_ms for delay in delays], [50, 95])
    likeness = float(np.median([delay.likeness for delay in delays]))
    return {"p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1), "windows": len(delays),
            "likeness": round(likeness, 2)}  # fmt: skip

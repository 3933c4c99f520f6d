"""Pitch of the source: autocorrelation candidates and the smoothest path through them (Boersma 1993)."""

from __future__ import annotations

from collections import deque

import numpy as np
import soxr
from numpy.typing import NDArray

from stages.geometry import CONTENT_RATE, TICK_16K, TICKS_PER_S
from stages.types import Samples

LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
RATE = 8000
TICK = RATE // TICKS_PER_S
FRAME, N_FFT = 400, 1024
N_CANDIDATES = 4
VOICING = 0.45
"""Strength that a voiced candidate must exceed to beat silence, as a share of the autocorrelation at lag zero."""
OCTAVE_COST, JUMP_COST, SWITCH_COST = 0.02, 0.5, 0.15
"""Per octave that a candidate is low; per octave between neighbours; for a change between voiced and unvoiced."""
QUIET = 0.02
"""Frames below this share of the loudest frame's amplitude are unvoiced."""
BREATH = 10 ** (-70 / 20)
MEMORY_TICKS, LEAST_TICKS = 400, 25


def pitch_hz(wave: Samples, n_frames: int) -> NDArray[np.float32]:
    """Fundamental [n_frames] of a wave at 16 kHz, frame j centred at j ticks of 20 ms; 0 where unvoiced."""
    if len(wave) < FRAME:
        return np.zeros(n_frames, np.float32)
    half = np.asarray(soxr.resample(wave, CONTENT_RATE, RATE, quality="LQ"), np.float32)
    padded = np.pad(half, (FRAME // 2, max(0, (n_frames - 1) * TICK + FRAME // 2 - len(half))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::TICK][:n_frames]
    strengths, lags = _candidates(frames - frames.mean(axis=1, keepdims=True))
    return _smoothest(strengths, np.log2(RATE / lags))


def _candidates(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strengths and lags [n, candidates] of each frame's highest peaks; strength 0 for a missing one."""
    window = np.hanning(FRAME).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, N_FFT)) ** 2
    own = np.fft.irfft(np.abs(np.fft.rfft(window, N_FFT)) ** 2)
    longest = int(RATE / LOWEST_HZ) + 2
    correlation = np.fft.irfft(power)[:, :longest] / np.maximum(own[:longest] / own[0], 1e-3)
    energy = correlation[:, :1]
    loud = np.sqrt(energy[:, 0]) > max(QUIET * np.sqrt(energy.max()), BREATH * FRAME)
    correlation = correlation / (energy + 1e-9)
    shortest = int(RATE / HIGHEST_HZ)
    mid, left, right = (correlation[:, shortest + shift : longest - 1 + shift] for shift in (0, -1, 1))
    curve = left - 2 * mid + right
    shift = np.clip(0.5 * (left - right) / np.where(curve < 0, curve, -1.0), -0.5, 0.5)
    lags = np.arange(shortest, longest - 1) + shift
    height = mid - 0.25 * (left - right) * shift - OCTAVE_COST * np.log2(lags / shortest)
    height = np.where((mid > left) & (mid >= right) & loud[:, None], height, 0.0)
    best = np.argpartition(height, -N_CANDIDATES, axis=1)[:, -N_CANDIDATES:]
    return np.take_along_axis(height, best, axis=1), np.take_along_axis(lags, best, axis=1)


def _smoothest(strengths: np.ndarray, octaves: np.ndarray) -> NDArray[np.float32]:
    """The path of highest strength less the cost of jumps; state 0 is unvoiced, the others are the candidates."""
    n = len(strengths)
    gain = np.concatenate([np.full((n, 1), VOICING), strengths], axis=1)
    moves = np.full((max(0, n - 1), gain.shape[1], gain.shape[1]), SWITCH_COST)  # (step, to, from)
    moves[:, 1:, 1:] = JUMP_COST * np.abs(octaves[1:, :, None] - octaves[:-1, None, :])
    moves[:, 0, 0] = 0.0
    came_from = np.zeros((n, gain.shape[1]), np.int64)
    score = gain[0]
    for i in range(1, n):
        paths = score - moves[i - 1]
        came_from[i] = paths.argmax(axis=1)
        score = gain[i] + paths.max(axis=1)
    state = int(score.argmax())
    pitch = np.zeros(n, np.float32)
    for i in range(n - 1, -1, -1):
        if state:
            pitch[i] = 2.0 ** octaves[i, state - 1]
        state = int(came_from[i, state])
    return pitch


def median_hz(pitch: NDArray[np.float32]) -> float:
    """Median of the voiced frames; 0 where none is voiced."""
    voiced = pitch[pitch > 0]
    return float(np.median(voiced)) if len(voiced) else 0.0


def relative_pitch(wave: Samples, n_frames: int, usual_hz: float | None = None) -> NDArray[np.float32]:
    """Pitch [n_frames] over the speaker's usual one, or over its own median: a melody without the voice's height."""
    pitch = pitch_hz(wave, n_frames)
    return pitch / np.float32(usual_hz or median_hz(pitch) or 1.0)


class UsualPitch:
    """The median pitch of what a speaker has said of late: a window's own median would flatten every sentence."""

    def __init__(self) -> None:
        self._voiced: deque[float] = deque(maxlen=MEMORY_TICKS)

    def push(self, wave: Samples) -> None:
        """Take more of the speech, at 16 kHz."""
        pitch = pitch_hz(wave, len(wave) // TICK_16K)
        self._voiced.extend(pitch[pitch > 0].tolist())

    @property
    def hz(self) -> float | None:
        """None until half a second of voiced sound has come."""
        return float(np.median(self._voiced)) if len(self._voiced) >= LEAST_TICKS else None

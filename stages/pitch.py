"""Pitch of the source: autocorrelation candidates and the smoothest path through them (Boersma 1993)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import soxr
from numpy.typing import NDArray

from stages.geometry import CONTENT_RATE, TICK_16K, TICKS_PER_S
from stages.types import Samples

LOWEST_HZ, FINE_HZ, HIGHEST_HZ = 60.0, 500.0, 1150.0
"""Above the middle one a period has so few samples that the autocorrelation is computed between them too."""
RATE = 8000
TICK = RATE // TICKS_PER_S
FRAME, N_FFT = 400, 1024
FINE_STEP = 0.25
N_CANDIDATES = 4
VOICING, HIGH_VOICING = 0.45, 0.85
"""Strength that a voiced candidate must exceed to beat silence, as a share of the autocorrelation at lag zero; and what
one above 500 Hz must have to count at all: in noise and in creaking speech the ringing of a formant looks like it."""
OCTAVE_COST, JUMP_COST, SWITCH_COST = 0.02, 0.5, 0.15
"""Per octave that a candidate lies below 500 Hz; per octave between neighbours; for a change between voiced and
unvoiced."""
QUIET, NEAR_TICKS = 0.05, 100
"""Frames below this share of the amplitude of the loudest one within 2 s are unvoiced, however loud that one is."""
SILENCE = 10 ** (-100 / 20)
"""Frames quieter (RMS) than the rounding of 16-bit sound are unvoiced too."""
MEMORY_TICKS, RECENT_TICKS, LEAST_TICKS = 400, 100, 50
"""How many voiced frames the usual pitch is the median of, show who speaks now, and are needed to begin."""
CALL_CENTS_PER_S, FILE_CENTS_PER_S = 33.0, 4.0
"""How fast it follows. A recording sets it once for each window, and no tune should show the border."""
SETTLING_CENTS_PER_S, SETTLING_TICKS = 45.0, 150
"""In a call it follows faster until so much voice has come."""
BEGINS_HIGHER, HIGHER_TICKS = 1.5, 200
"""Speech begins some semitones above its usual pitch and falls to it. The first pitch of a call counts as so much too
high, less and less until so much voice has come (20 pairs of held-out speakers, 2026-11-28)."""
STRANGE, FAR = 5.0, 2.0
"""Another speaker's median is STRANGE semitones away, and nine tenths of the voice are FAR away."""
PAUSE_TICKS = 15
"""A pause (0.3 s): speakers change only after one."""


def pitch_hz(wave: Samples, n_frames: int) -> NDArray[np.float32]:
    """Fundamental [n_frames] of a wave at 16 kHz, frame j centred at j ticks of 20 ms; 0 where unvoiced."""
    if len(wave) < FRAME:
        return np.zeros(n_frames, np.float32)
    half = np.asarray(soxr.resample(wave, CONTENT_RATE, RATE, quality="LQ"), np.float32)
    padded = np.pad(half, (FRAME // 2, max(0, (n_frames - 1) * TICK + FRAME // 2 - len(half))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::TICK][:n_frames]
    strengths, lags = _candidates(frames - frames.mean(axis=1, keepdims=True))
    return _smoothest(strengths, np.log2(RATE / lags))


class _Lags:
    """A row of lags [n], evenly spaced, to look for peaks at, in samples at 8 kHz."""

    def __init__(self, lags: np.ndarray) -> None:
        self.lags, self.step = lags, float(lags[1] - lags[0])
        bins = np.arange(N_FFT // 2 + 1)
        share = np.where((bins == 0) | (bins == N_FFT // 2), 1.0, 2.0) / N_FFT
        cosines = share[:, None] * np.cos(2 * np.pi / N_FFT * np.outer(bins, lags))  # a power spectrum's inverse
        own_power = np.abs(np.fft.rfft(WINDOW, N_FFT)) ** 2
        self.own = np.maximum(own_power @ cosines / (own_power @ share), 1e-3).astype(np.float32)
        self.cosines = cosines.astype(np.float32)

    def peaks(self, correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Heights and places [frames, n - 2] of a window's autocorrelation [frames, n]; height 0 where no peak is."""
        left, mid, right = (correlation[:, shift : shift + len(self.lags) - 2] for shift in range(3))
        curve = left - 2 * mid + right
        shift = np.clip(0.5 * (left - right) / np.where(curve < 0, curve, -1.0), -0.5, 0.5)
        height = mid - 0.25 * (left - right) * shift
        return np.where((mid > left) & (mid >= right), height, 0.0), self.lags[1:-1] + self.step * shift


WINDOW = np.hanning(FRAME).astype(np.float32)
LONG_LAGS = _Lags(np.arange(int(RATE / FINE_HZ) - 1, int(RATE / LOWEST_HZ) + 2))
SHORT_LAGS = _Lags(np.arange(RATE / HIGHEST_HZ - FINE_STEP, RATE / FINE_HZ + FINE_STEP, FINE_STEP))


def _candidates(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strengths and lags [n, candidates] of each frame's highest peaks; strength 0 for a missing one."""
    power = np.abs(np.fft.rfft(frames * WINDOW, N_FFT)) ** 2
    correlation = np.fft.irfft(power)
    energy = correlation[:, :1]
    first, n_long = int(LONG_LAGS.lags[0]), len(LONG_LAGS.lags)
    scale = 1 / (energy + 1e-12)
    strength, lags = LONG_LAGS.peaks(correlation[:, first : first + n_long] * scale / LONG_LAGS.own)
    low = strength - OCTAVE_COST * np.log2(lags * (FINE_HZ / RATE))
    high, short_lags = SHORT_LAGS.peaks(power @ SHORT_LAGS.cosines * scale / SHORT_LAGS.own)
    high = np.where(high > HIGH_VOICING, high, 0.0)
    height = np.concatenate([np.where(strength > 0, low, 0.0), high], axis=1) * _loud(energy[:, 0])[:, None]
    lags = np.concatenate([lags, short_lags], axis=1)
    best = np.argpartition(height, -N_CANDIDATES, axis=1)[:, -N_CANDIDATES:]
    return np.take_along_axis(height, best, axis=1), np.take_along_axis(lags, best, axis=1)


def _loud(energy: np.ndarray) -> np.ndarray:
    """Which frames are loud enough to be voiced, by their energies [n] under the window."""
    amplitude = np.sqrt(energy / np.sum(np.square(WINDOW)))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(amplitude, NEAR_TICKS), 2 * NEAR_TICKS + 1)
    return np.asarray(amplitude > np.maximum(QUIET * around.max(axis=1), SILENCE))


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


def is_another_speaker(usual_hz: float, voiced: Sequence[float]) -> bool:
    """Whether pitches [n] are of another speaker than the usual pitch: nearly all of them are far from it."""
    semitones = 12 * np.log2(np.asarray(voiced) / usual_hz)
    low, middle, high = np.quantile(semitones, [0.1, 0.5, 0.9])
    return bool(abs(middle) > STRANGE and (low > FAR or high < -FAR))


class UsualPitch:
    """The pitch that a speaker's melody is measured from. A window's own median would flatten every sentence.

    It begins as the median of the first speech and follows the recent median, so slowly that no interval of a tune is
    bent. After a pause it follows another speaker at once. `cents_per_s` None takes the speed of a call.
    """

    def __init__(self, cents_per_s: float | None = None) -> None:
        self._cents_per_s = cents_per_s
        self._n_voiced = 0
        self._voiced: deque[float] = deque(maxlen=MEMORY_TICKS)
        self._unvoiced_ticks = 0
        self.hz: float | None = None
        """None until a second of voiced sound has come."""

    def push(self, wave: Samples) -> None:
        """Take more of the speech, at 16 kHz."""
        self.take(pitch_hz(wave, len(wave) // TICK_16K))

    def take(self, pitch: NDArray[np.float32]) -> None:
        """The same for its pitch [ticks]."""
        for hz in pitch.tolist():
            if hz > 0:
                self._voiced.append(hz)
                self._n_voiced += 1
                self._unvoiced_ticks = 0
            else:
                self.rest(1)
        if len(self._voiced) < LEAST_TICKS:
            return
        own_hz = float(np.median(self._voiced)) * 2.0 ** (-self._begins_higher / 12)
        most = self._speed / 1200 / TICKS_PER_S * len(pitch)
        self.hz = self.hz * 2.0 ** np.clip(np.log2(own_hz / self.hz), -most, most) if self.hz else own_hz

    @property
    def _speed(self) -> float:
        """Cents per second."""
        if self._cents_per_s is not None:
            return self._cents_per_s
        return SETTLING_CENTS_PER_S if self._n_voiced < SETTLING_TICKS else CALL_CENTS_PER_S

    @property
    def _begins_higher(self) -> float:
        """How many semitones the speech so far is expected to lie above the usual pitch."""
        is_call = self._cents_per_s is None
        return BEGINS_HIGHER * max(0.0, 1 - self._n_voiced / HIGHER_TICKS) if is_call else 0.0

    def rest(self, ticks: int) -> None:
        """So many ticks pass without a voice."""
        was_pause = self._unvoiced_ticks >= PAUSE_TICKS
        self._unvoiced_ticks += ticks
        if was_pause or self._unvoiced_ticks < PAUSE_TICKS or self.hz is None:
            return
        recent = list(self._voiced)[-RECENT_TICKS:]
        if len(recent) == RECENT_TICKS and is_another_speaker(self.hz, recent):
            self._voiced = deque(recent, maxlen=MEMORY_TICKS)
            self.hz = float(np.median(recent))

"""Finds the speech of a recording, and cuts out what lies between and around it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from stages.geometry import CONTENT_RATE, TICK_16K, TICK_MODEL, TICKS_PER_S
from stages.pitch import pitch_hz
from stages.types import Samples

AGGRESSIVENESS = 2
VAD_LEVEL = 10 ** (-20 / 20)
"""The detector misjudges quiet speech, so all speech is brought to this level."""
AUDIBLE = 10 ** (-40 / 10)
"""A tick with less than this share of the loudest power is no speech."""
OVER_NOISE, LOUD_ENOUGH = 4.0, 10 ** (-25 / 10)
"""Speech has so many times the power of the quietest tenth, or this share of the loudest power."""
ALIVE = 10.0
"""Loudest power over the quietest tenth. Sound that has no voice and varies less is noise, not a whisper."""
BURST_TICKS = 15
"""A shorter sound (300 ms), such as a click, does not count as the loudest."""
BRIDGED_TICKS = 15
"""Gaps this short belong to the stretch of speech around them."""
VOICED_SHARE, VOICED_TICKS = 0.15, 4
"""A stretch of speech has at least this much voiced sound; a cough, a click or a rustle has not."""
LONGEST_PAUSE_TICKS, MARGIN_TICKS, ONSET_TICKS = 25, 8, 2
"""Longer pauses become two margins; before the first word only its soft onset is kept."""
LEAST_SPEECH_TICKS = 10
STEADY_LAG, STEADY_LIKENESS, STEADY_SHARE = 5, 0.93, 0.4
"""Tones and music keep their spectrum for 100 ms for nearly half of a second; voices do so for a third at most."""

N_FFT, FIRST_BIN = 1024, 8
"""Spectra of 64 ms, of use from 125 Hz on."""


def speech_ticks(content_wave: Samples) -> NDArray[np.bool_]:
    """Which ticks of a wave at 16 kHz are a voice's, short gaps between its words included."""
    n_ticks = len(content_wave) // TICK_16K
    ticks = content_wave[: n_ticks * TICK_16K].reshape(n_ticks, TICK_16K)
    power = np.mean(np.square(ticks, dtype=np.float64), axis=1)
    loudest = _without_bursts(power).max(initial=0.0)
    if loudest <= 0:
        return np.zeros(n_ticks, bool)
    detector = webrtcvad.Vad(AGGRESSIVENESS)
    pcm = (np.clip(ticks * (VAD_LEVEL / np.sqrt(loudest)), -1, 1) * 32767).astype("<i2")
    floor = float(np.quantile(power, 0.1))
    audible = power > max(AUDIBLE * loudest, min(OVER_NOISE * floor, LOUD_ENOUGH * loudest))
    heard = np.array([detector.is_speech(tick.tobytes(), CONTENT_RATE) for tick in pcm]) & audible
    voiced = pitch_hz(content_wave, n_ticks) > 0
    moving = heard & ~_steady_ticks(content_wave, n_ticks)
    if moving.sum() >= TICKS_PER_S:  # else all of it is steady, and may well be sung
        heard = moving
    stretches = list(runs(_bridged(heard)))
    spoken = [run for run in stretches if voiced[run].sum() >= max(VOICED_TICKS, VOICED_SHARE * heard[run].sum())]
    flags = np.zeros(n_ticks, bool)
    if not spoken and loudest > ALIVE * floor:  # a whisper has no voiced sound at all
        spoken = stretches
    for run in spoken:
        flags[run] = True
    return flags


def _without_bursts(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power of each tick; of its neighbours where it is a short burst."""
    if len(power) < BURST_TICKS:
        return power
    return np.asarray(np.quantile(np.lib.stride_tricks.sliding_window_view(power, BURST_TICKS), 0.6, axis=1))


def _bridged(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The flags with the short gaps between them filled."""
    filled = flags.copy()
    for gap in runs(~flags):
        if gap.start > 0 and gap.stop < len(flags) and gap.stop - gap.start <= BRIDGED_TICKS:
            filled[gap] = True
    return filled


def runs(flags: NDArray[np.bool_]) -> Iterator[slice]:
    """Where the flags are set, run by run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        yield slice(int(start), int(stop))


def spectra(content_wave: Samples, n_frames: int) -> NDArray[np.float64]:
    """Magnitudes [frames, bins] up to 4 kHz, frame j centred on tick j."""
    padded = np.pad(content_wave, (N_FFT // 2, N_FFT))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::TICK_16K][:n_frames]
    return np.asarray(np.abs(np.fft.rfft(frames * np.hanning(N_FFT), axis=1))[:, : N_FFT // 4])


def _steady_ticks(content_wave: Samples, n_ticks: int) -> NDArray[np.bool_]:
    """Ticks within a second of tones or music: no voice keeps its spectrum for so long."""
    magnitudes = spectra(content_wave, n_ticks)[:, FIRST_BIN:]
    energy = np.sum(magnitudes**2, axis=1)
    now, later = magnitudes[:-STEADY_LAG], magnitudes[STEADY_LAG:]
    likeness = np.sum(now * later, axis=1) / np.sqrt(energy[:-STEADY_LAG] * energy[STEADY_LAG:] + 1e-12)
    audible = energy[:-STEADY_LAG] > AUDIBLE * energy.max(initial=0.0)
    second = np.ones(min(TICKS_PER_S, len(likeness)))
    like, all_ = (np.convolve(flags, second, "same") for flags in ((likeness > STEADY_LIKENESS) & audible, audible))
    steady = like > STEADY_SHARE * np.maximum(all_, TICKS_PER_S // 5)
    return np.asarray(np.pad(steady, (0, n_ticks - len(steady)), mode="edge"))


def joined(wave: Samples, flags: NDArray[np.bool_]) -> Samples:
    """The flagged ticks of a wave at 22.05 kHz, short pauses between them kept, long ones cut without a click."""
    n = len(flags)
    spoken = list(runs(flags))
    first, last = spoken[0].start, spoken[-1].stop
    start = first - ONSET_TICKS if first > MARGIN_TICKS else 0
    pieces = []
    for run, following in pairwise(spoken):
        if following.start - run.stop > LONGEST_PAUSE_TICKS:
            pieces.append((start, run.stop + MARGIN_TICKS))
            start = following.start - MARGIN_TICKS
    pieces.append((start, len(wave) if n - last <= LONGEST_PAUSE_TICKS else last + MARGIN_TICKS))
    whole = wave[pieces[0][0] * TICK_MODEL : pieces[0][1] * TICK_MODEL]
    for a, b in pieces[1:]:
        whole = _cross_faded(whole, wave[a * TICK_MODEL : b * TICK_MODEL])
    return whole


def _cross_faded(before: Samples, after: Samples) -> Samples:
    """Joins two waves, and cross-fades over one tick."""
    rise = np.linspace(0, 1, TICK_MODEL, dtype=np.float32)
    seam = before[-TICK_MODEL:] * (1 - rise) + after[:TICK_MODEL] * rise
    return np.concatenate([before[:-TICK_MODEL], seam, after[TICK_MODEL:]])

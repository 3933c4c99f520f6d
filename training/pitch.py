"""What a voice is like in two words: how high it is, and how its long-term spectrum is shaped."""

import numpy as np

from training.data import CONTENT_RATE, Floats

FRAME, HOP = 1024, 512
LOWEST_HZ, HIGHEST_HZ = 60.0, 420.0
VOICED = 0.45  # of the autocorrelation at lag zero


def median_pitch_hz(wave: Floats) -> float:
    """Median fundamental of the voiced frames of a wave at 16 kHz, by autocorrelation; 150 Hz where none is voiced."""
    if len(wave) < FRAME:
        return 150.0
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP] * np.hanning(FRAME)
    loud = np.sqrt(np.mean(frames**2, axis=1))
    frames = frames[loud > 0.2 * loud.max()]
    if not len(frames):
        return 150.0
    spectrum = np.fft.rfft(frames, 2 * FRAME)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, :FRAME]
    correlation *= 1 / np.maximum(1 - np.arange(FRAME) / FRAME, 0.2)  # the window shortens long lags
    shortest, longest = int(CONTENT_RATE / HIGHEST_HZ), int(CONTENT_RATE / LOWEST_HZ)
    lags = correlation[:, shortest:longest].argmax(axis=1) + shortest
    strength = correlation[np.arange(len(lags)), lags] / (correlation[:, 0] + 1e-9)
    voiced = lags[strength > VOICED]
    return float(CONTENT_RATE / np.median(voiced)) if len(voiced) else 150.0


def band_shape(fbank: Floats) -> Floats:
    """Mean over the louder frames of log bands [frames, bands], relative to their own mean: [bands]."""
    level = fbank.mean(axis=1)
    mean = fbank[level >= np.median(level)].mean(axis=0)
    return np.asarray(mean - mean.mean(), np.float32)

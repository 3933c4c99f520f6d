"""Sample-rate conversion: soxr into the model's rate, and upstream's sinc from there to the content encoder's.

Both stateful converters give the same samples however the input is cut into packets.
"""

from __future__ import annotations

import warnings

import numpy as np
import soxr
import torch
from torchaudio import functional as audio

from stages.geometry import CONTENT_RATE, MODEL_RATE
from stages.types import Samples

# 22050 : 16000 = 441 : 320; blocks of whole periods, with room for the filter's 9 samples on each side.
PERIOD_IN, PERIOD_OUT = 441, 320
BLOCK_PERIODS = 10
MARGIN_PERIODS = 1


def to_model_rate(samples: Samples, sample_rate: int) -> Samples:
    """Whole sound at `sample_rate` to 22.05 kHz (soxr HQ, as librosa loads files)."""
    if sample_rate == MODEL_RATE:
        return samples
    return np.asarray(soxr.resample(samples, sample_rate, MODEL_RATE, quality="HQ"), np.float32)


def to_content_rate(samples: Samples) -> Samples:
    """Whole sound at 22.05 kHz to 16 kHz by a windowed sinc (Hann, width 6, roll-off 0.99)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        converted = audio.resample(torch.from_numpy(np.array(samples, np.float32)), MODEL_RATE, CONTENT_RATE)
    return np.asarray(converted.numpy())


class ModelRateStream:
    """Growing sound at any rate to 22.05 kHz."""

    def __init__(self, sample_rate: int) -> None:
        self._resampler = None
        if sample_rate != MODEL_RATE:
            self._resampler = soxr.ResampleStream(sample_rate, MODEL_RATE, 1, dtype="float32", quality="HQ")

    def push(self, samples: Samples, last: bool = False) -> Samples:
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)


class ContentRateStream:
    """Growing sound at 22.05 kHz to 16 kHz, equal to `to_content_rate` of the whole.

    Works in fixed blocks with a margin of real neighbours on both sides, so the packets' borders leave no trace.
    """

    def __init__(self) -> None:
        self._held = np.zeros(
            MARGIN_PERIODS * PERIOD_IN, np.float32
        )  # left margin: the filter sees zeros before a start
        self._n_in = 0
        self._n_out = 0

    def push(self, samples: Samples, last: bool = False) -> Samples:
        self._held = np.concatenate([self._held, samples])
        self._n_in += len(samples)
        block, margin = BLOCK_PERIODS * PERIOD_IN, MARGIN_PERIODS * PERIOD_IN
        pieces: list[Samples] = []
        while len(self._held) >= block + 2 * margin:
            pieces.append(self._convert(self._held[: block + 2 * margin]))
            self._held = self._held[block:]
        if last:
            wanted = -(-self._n_in * PERIOD_OUT // PERIOD_IN) - self._n_out - sum(map(len, pieces))
            padding = -(len(self._held) - margin) % block + margin
            padded = np.concatenate([self._held, np.zeros(padding, np.float32)])
            while wanted > 0:
                piece = self._convert(padded[: block + 2 * margin])[:wanted]
                pieces.append(piece)
                wanted -= len(piece)
                padded = np.concatenate([padded[block:], np.zeros(block, np.float32)])
            self._held = np.zeros(margin, np.float32)
        converted = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        self._n_out += len(converted)
        return converted

    @staticmethod
    def _convert(framed: Samples) -> Samples:
        margin = MARGIN_PERIODS * PERIOD_OUT
        return to_content_rate(framed)[margin : margin + BLOCK_PERIODS * PERIOD_OUT]

"""A repository recording as a microphone would give it: 48 kHz, cut into 20 ms frames."""

import functools
from pathlib import Path

import numpy as np
import soxr

from webrtc.files.decode import RecordingDecoder
from webrtc.opus import FRAME, RATE_HZ, Samples48k

RECORDING = Path(__file__).parents[2] / "samples" / "sources" / "bakery.flac"
SPEECH_S = 6


@functools.cache
def speech_48k() -> Samples48k:
    """Six seconds of speech, peak 0.5."""
    with RecordingDecoder() as decoder:
        pieces = [*decoder.feed(RECORDING.read_bytes()), *decoder.finish()]
    sample_rate = pieces[0][1]
    spoken = np.concatenate([samples for samples, _ in pieces])[: SPEECH_S * sample_rate]
    samples = np.asarray(soxr.resample(spoken, sample_rate, RATE_HZ), np.float32)[: SPEECH_S * RATE_HZ]
    assert len(samples) == SPEECH_S * RATE_HZ, "the recording is too short"
    return samples * np.float32(0.5 / np.abs(samples).max())


def frames_of(samples: Samples48k) -> list[Samples48k]:
    """Whole frames of 20 ms."""
    return list(samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME))

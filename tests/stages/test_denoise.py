"""Noise removal: what it leaves, and that growing sound is cleaned as the whole would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr

from stages.denoise import NoiseRemover, without_noise, without_tones
from stages.geometry import MODEL_RATE
from stages.types import Samples
from tests.stages.sounds import noise, packets, run_through, sine
from webrtc.files import decode_file

SAMPLES = Path(__file__).parents[2] / "samples"


def voice(seconds: float = 3.0) -> Samples:
    samples, rate = decode_file(SAMPLES / "sources" / "station.flac")
    assert rate == MODEL_RATE
    return samples[: int(seconds * rate)]


def snr_db(heard: Samples, clean: Samples) -> float:
    """How far the clean sound lies over what else is heard, whatever their gains."""
    own = clean * (np.dot(heard, clean) / np.dot(clean, clean))
    return float(10 * np.log10(np.sum(own**2) / np.sum((heard - own) ** 2)))


@pytest.mark.parametrize("colour", ["white", "brown"])
def test_noise_is_taken_out_and_the_voice_stays_in_time(colour: str) -> None:
    clean = voice()
    hiss = noise(3.0, MODEL_RATE)[: len(clean)]
    if colour == "brown":
        hiss = np.cumsum(hiss) - np.convolve(np.cumsum(hiss), np.ones(2000) / 2000, "same")
    noisy = np.asarray(clean + hiss * 0.56 * np.std(clean) / np.std(hiss), np.float32)
    cleaned = without_noise(noisy, MODEL_RATE)
    assert len(cleaned) == len(clean)
    assert snr_db(noisy, clean) < 6
    assert snr_db(cleaned, clean) > snr_db(noisy, clean) + 5


@pytest.mark.parametrize("rate", [8000, 16000, MODEL_RATE, 48000])
def test_clean_speech_passes_at_all_rates(rate: int) -> None:
    clean = np.asarray(soxr.resample(voice(), MODEL_RATE, rate), np.float32)
    assert snr_db(without_noise(clean, rate), clean) > 15


@pytest.mark.parametrize("largest", [1000, 30000])
def test_how_sound_is_cut_leaves_no_trace(largest: int) -> None:
    sound = voice(1.5) + noise(1.5, MODEL_RATE, peak=0.02)[: int(1.5 * MODEL_RATE)]
    whole = without_noise(sound, MODEL_RATE)
    cut = run_through(NoiseRemover(MODEL_RATE), packets(sound, 1, largest))
    assert len(cut) == len(sound)
    assert np.allclose(cut, whole, atol=1e-4)


@pytest.mark.parametrize("n_samples", [0, 1, 100, 5000])
def test_short_sounds_keep_their_length(n_samples: int) -> None:
    assert len(without_noise(np.zeros(n_samples, np.float32), 44100)) == n_samples


def test_lasting_tones_are_taken_out() -> None:
    clean = voice(5.0)
    mixed = clean + 0.1 * sine(len(clean), 330.0)
    assert snr_db(without_tones(mixed), clean) > snr_db(mixed, clean) + 4
    assert snr_db(without_tones(clean), clean) > 20

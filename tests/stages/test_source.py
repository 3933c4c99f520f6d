"""The harmonic source holds every harmonic of its pitch, all equally strong, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.schema import MelSettings
from stages.models.source import HIGHEST_HZ, LEVEL, TAPER_HZ, HarmonicSource

RATE = MelSettings().sample_rate


def spectrum(wave: torch.Tensor) -> np.ndarray:
    """Amplitudes by hertz, of the last second."""
    second = wave[-RATE:].numpy().astype(np.float64)
    return np.abs(np.fft.rfft(second * np.hanning(RATE))) * 4 / RATE


@pytest.mark.parametrize("hz", [80, 133, 320])
def test_harmonics_are_equally_strong_up_to_the_band_limit(hz: int) -> None:
    wave, voiced = HarmonicSource(MelSettings())(torch.full((1, 130), float(hz)))
    assert wave.shape == (1, 130 * 256) and bool((voiced == 1).all())
    amplitudes = spectrum(wave[0])
    harmonics = amplitudes[hz : int(HIGHEST_HZ - TAPER_HZ) : hz]
    assert np.abs(harmonics / LEVEL - 1).max() < 0.1
    between = amplitudes[hz // 2 : int(HIGHEST_HZ) : hz]
    assert between.max() < 0.01 * LEVEL
    assert amplitudes[int(HIGHEST_HZ) + 500 :].max() < 0.02 * LEVEL


def test_a_batch_equals_singles_and_unvoiced_frames_are_silent() -> None:
    source, generator = HarmonicSource(MelSettings()), np.random.default_rng(0)
    f0 = torch.from_numpy(generator.uniform(90, 300, (3, 40)).astype(np.float32))
    f0[1, 10:30] = 0
    f0[2] = 0
    together, voiced = source(f0)
    for one, row in zip(together, f0, strict=True):
        assert (one - source(row[None])[0][0]).abs().max() < 1e-6
    assert not together[1, 11 * 256 : 29 * 256].any() and together[1, : 9 * 256].abs().max() > LEVEL
    assert not together[2].any() and not voiced[2].any()

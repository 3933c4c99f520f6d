"""Mel matching brings a wave's spectral envelope to the mel that was asked for, and leaves the rest alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from configs.schema import MelSettings
from stages.models.mel_match import CEILING, KNEE, MelMatch, limited
from tests.serve_app.deploy import speechlike

N_SAMPLES = 256 * 80


def coloured(wave: Tensor) -> Tensor:
    """The same sound, dull and at a third of its level."""
    return torch.from_numpy(np.convolve(wave[0].numpy(), np.ones(9) / 27, mode="same").astype(np.float32))[None]


def test_mel_gets_nearer_with_each_pass() -> None:
    wave = torch.from_numpy(speechlike(2.0, 0)[:N_SAMPLES])[None]
    matches = [MelMatch(MelSettings(), passes) for passes in (0, 1, 2, 4)]
    wanted = matches[0].mel(wave)
    errors = [float((match.mel(match(coloured(wave), wanted)) - wanted).abs().mean()) for match in matches]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.25 * errors[0]


def test_a_wave_that_fits_is_left_alone() -> None:
    wave = torch.from_numpy(speechlike(2.0, 1)[:N_SAMPLES])[None]
    match = MelMatch(MelSettings(), 2)
    assert torch.equal(MelMatch(MelSettings(), 0)(wave, match.mel(wave)), wave)
    assert (match(wave, match.mel(wave)) - wave).abs().max() < 1e-3


def test_silence_stays_silent_and_a_batch_equals_singles() -> None:
    match = MelMatch(MelSettings(), 2)
    waves = torch.stack([torch.from_numpy(speechlike(2.0, seed)[:N_SAMPLES]) for seed in (2, 3)])
    mels = match.mel(waves).flip(0)
    together = match(waves, mels)
    assert together.shape == waves.shape and together.abs().max() <= 1.0
    for i in range(2):
        assert (together[i] - match(waves[i : i + 1], mels[i : i + 1])[0]).abs().max() < 1e-5
    assert not match(torch.zeros(1, N_SAMPLES), mels[:1]).any()


def test_what_is_too_loud_is_bent_and_not_clipped() -> None:
    x = torch.linspace(-3, 3, 1001)
    y = limited(x)
    assert y.abs().max() <= CEILING
    assert torch.equal(y[x.abs() <= KNEE], x[x.abs() <= KNEE])
    inside = x.abs() < 1.0
    assert (y[inside].diff() > 0).all()


def test_the_pitch_is_the_one_asked_for_and_not_what_the_mel_shows() -> None:
    match, frames = MelMatch(MelSettings(), 2), 80
    shown, _ = match.source(torch.full((1, frames), 150.0))
    noise = 0.01 * torch.from_numpy(np.random.default_rng(0).standard_normal((1, frames * 256)).astype(np.float32))
    for asked_hz in (120.0, 190.0):
        made = match(noise, match.mel(shown + noise), torch.full((1, frames), asked_hz))
        spectrum = np.abs(np.fft.rfft(made[0].numpy() * np.hanning(made.shape[1]), 22050))
        harmonics = [
            spectrum[round(hz * k) - 8 : round(hz * k) + 9].max() for hz in (asked_hz, 150.0) for k in (1, 2, 3)
        ]
        assert min(harmonics[:3]) > 4 * max(harmonics[3:])

"""Mel matching: corrects a vocoded wave's spectral envelope until its mel is the mel that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.schema import MelSettings
from stages.layers import next_layer
from stages.models.mel import MelSpectrogram
from stages.models.source import HarmonicSource

MAX_GAIN = 6.0
"""Natural logarithm of the largest correction, 52 dB: silence is not blown up to anything."""
ENERGY_FLOOR = 1e-3
KNEE, CEILING = 0.8, 0.97
RIPPLE_BANDS, LOW_BAND, HIGH_BAND = 1.5, 20, 40
"""Over how many bands (standard deviation) the correction of voiced frames is smoothed: all of it up to the low band
(830 Hz), less and less up to the high one (1.6 kHz), where a band is wider than the space between harmonics."""
HARMONIC_HZ, NOISY_HZ, HARMONIC_SHARE_ABOVE = 2500.0, 6000.0, 0.2
"""Below the first, voiced sound is all harmonics. Above the second it is mostly noise, with this share of harmonics."""


def limited(x: Tensor) -> Tensor:
    """Samples of any size bent smoothly below the ceiling; what lies under the knee stays as it is."""
    room = CEILING - KNEE
    over = (x.abs() - KNEE).clamp(min=0.0)
    return x.clamp(-KNEE, KNEE) + x.sign() * room * torch.tanh(over / room)


def overlap_added(frames: Tensor, hop: int) -> Tensor:
    """Frames [B, T, n] to their sum [B, (T - 1) * hop + n], each `hop` later than the one before; n is hops."""
    batch, n_frames, n = frames.shape
    hops = frames.view(batch, n_frames, n // hop, hop)
    added = frames.new_zeros(batch, n_frames + n // hop - 1, hop)
    for i in range(n // hop):
        added[:, i : i + n_frames] += hops[:, :, i]
    return added.view(batch, -1)


def smoothing_matrix(n_mels: int) -> Tensor:
    """Weighted means over neighbouring bands [mels, mels], wide for the low ones and none for the high ones."""
    band = torch.arange(n_mels, dtype=torch.float32)
    width = RIPPLE_BANDS * ((HIGH_BAND - band) / (HIGH_BAND - LOW_BAND)).clamp(1e-3, 1)
    weights = torch.exp(-0.5 * ((band[:, None] - band) / width[:, None]).square())
    return weights / weights.sum(dim=1, keepdim=True)


class MelMatch(nn.Module):
    """Waves [B, 256 * T] in [-1, 1] and their wanted log-mel [B, mels, T] to waves whose mel is nearer to it.

    Each pass multiplies the short-time spectrum by what the mel lacks, spread over the bins by the filterbank, and adds
    the frames up again; phases and harmonics stay the vocoder's. A cure for small vocoders: see docs/decisions.
    """

    harmonic_share: Tensor
    spread: Tensor
    """How a band's gain spreads over the bins [bins, mels]."""
    smoothing: Tensor
    """Gains of bands to smooth ones [mels, mels]."""

    def __init__(self, settings: MelSettings, passes: int) -> None:
        super().__init__()
        self.passes = passes
        self.mel = MelSpectrogram(settings)
        self.source = HarmonicSource(settings)
        hz = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1)
        slope = ((hz - HARMONIC_HZ) / (NOISY_HZ - HARMONIC_HZ)).clamp(0, 1)
        bank = self.mel.filterbank
        self.register_buffer("spread", (bank / (bank.sum(dim=0) + 1e-8)).T.contiguous(), persistent=False)
        self.register_buffer("smoothing", smoothing_matrix(settings.n_mels), persistent=False)
        self.register_buffer("harmonic_share", 1 - (1 - HARMONIC_SHARE_ABOVE) * slope, persistent=False)

    def forward(self, x: Tensor, mel: Tensor, f0: Tensor | None = None) -> Tensor:
        """With a pitch [B, T] in Hz, the voiced frames' harmonics come from a source at that pitch.

        Low bands of the mel follow single harmonics. That is smoothed away, since the pitch places the harmonics.
        """
        for i in range(self.passes):
            next_layer()
            if f0 is None:
                spectrum = self._matched(x, mel)
            elif i == 0:
                spectrum = self._voiced(x, mel, f0)
            else:
                spectrum = self._matched(x, mel, f0 > 0)
            x = self._wave(spectrum, x.shape[-1])
        return limited(x) if self.passes else x

    def _voiced(self, x: Tensor, mel: Tensor, f0: Tensor) -> Tensor:
        """Source and x, each brought to the mel, and mixed by how voiced the frame is and how high the bin."""
        harmonics, voiced = self.source(f0)
        both = torch.cat([harmonics, x]), torch.cat([mel, mel]), torch.cat([f0, f0]) > 0
        of_source, of_x = self._matched(*both).chunk(2)
        share = voiced[:, None] * self.harmonic_share[:, None]
        return share * of_source + (1 - share.square()).sqrt() * of_x  # type: ignore[no-any-return]

    def _matched(self, x: Tensor, mel: Tensor, is_voiced: Tensor | None = None) -> Tensor:
        """The spectrum of x [B, bins, T] times what its mel lacks, smoothed where the frame [B, T] is voiced."""
        spectrum = self.mel.spectrum(x)
        gains = (mel - self.mel.of_spectrum(spectrum)).clamp(-MAX_GAIN, MAX_GAIN)
        if is_voiced is not None:
            gains = torch.where(is_voiced[:, None], self.smoothing @ gains, gains)
        return spectrum * torch.exp(self.spread @ gains)

    def _wave(self, spectrum: Tensor, n_samples: int) -> Tensor:
        """Spectrum [B, bins, T] back to samples [B, n_samples], by the analysis' own window."""
        n_fft, hop, window = self.mel.n_fft, self.mel.hop, self.mel.window
        pad = (n_fft - hop) // 2
        frames = torch.fft.irfft(spectrum.transpose(1, 2)) * window  # (B, T, n_fft)
        energy = window.square().expand(1, frames.shape[1], -1)
        added, norm = (overlap_added(part, hop) for part in (frames, energy))
        return (added / norm.clamp(min=ENERGY_FLOOR))[:, pad : pad + n_samples]

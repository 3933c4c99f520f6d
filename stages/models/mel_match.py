"""Mel matching: corrects a vocoded wave's spectral envelope until its mel is the mel that was asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import MelSettings
from stages.models.mel import MelSpectrogram
from stages.models.source import HarmonicSource

MAX_GAIN = 6.0
"""Natural logarithm of the largest correction, 52 dB: silence is not blown up to anything."""
ENERGY_FLOOR = 1e-3
KNEE, CEILING = 0.8, 0.97
HARMONIC_HZ, NOISY_HZ, HARMONIC_SHARE_ABOVE = 2500.0, 6000.0, 0.2
"""Up to where voiced sound is all harmonics, from where on it is mostly noise, and how little it then holds of them."""


def limited(x: Tensor) -> Tensor:
    """Samples of any size bent smoothly below the ceiling; what lies under the knee stays as it is."""
    room = CEILING - KNEE
    over = (x.abs() - KNEE).clamp(min=0.0)
    return x.clamp(-KNEE, KNEE) + x.sign() * room * torch.tanh(over / room)


class MelMatch(nn.Module):
    """Waves [B, 256 * T] in [-1, 1] and their wanted log-mel [B, mels, T] to waves whose mel is nearer to it.

    Each pass multiplies the short-time spectrum by what the mel lacks, spread over the bins by the filterbank, and adds
    the frames up again; phases and harmonics stay the vocoder's. A cure for small vocoders: see docs/decisions.
    """

    harmonic_share: Tensor

    def __init__(self, settings: MelSettings, passes: int) -> None:
        super().__init__()
        self.passes = passes
        self.mel = MelSpectrogram(settings)
        self.source = HarmonicSource(settings)
        hz = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1)
        slope = ((hz - HARMONIC_HZ) / (NOISY_HZ - HARMONIC_HZ)).clamp(0, 1)
        self.register_buffer("harmonic_share", 1 - (1 - HARMONIC_SHARE_ABOVE) * slope, persistent=False)

    def forward(self, x: Tensor, mel: Tensor, f0: Tensor | None = None) -> Tensor:
        """With a pitch [B, T] in Hz, the voiced frames' harmonics come from a source at that pitch."""
        for i in range(self.passes):
            if i == 0 and f0 is not None:
                x = self._voiced(x, mel, f0)
            else:
                x = self._filter(x, (mel - self.mel(x)).clamp(-MAX_GAIN, MAX_GAIN))
        return limited(x) if self.passes else x

    def _voiced(self, x: Tensor, mel: Tensor, f0: Tensor) -> Tensor:
        """Source and x, each brought to the mel, and mixed by how voiced the frame is and how high the bin."""
        harmonics, voiced = self.source(f0)
        spectra = [
            self._spectrum(wave) * self._spread((mel - self.mel(wave)).clamp(-MAX_GAIN, MAX_GAIN))
            for wave in (harmonics, x)
        ]
        share = voiced[:, None] * self.harmonic_share[:, None]
        return self._wave(share * spectra[0] + (1 - share.square()).sqrt() * spectra[1], x.shape[-1])

    def _filter(self, x: Tensor, gains: Tensor) -> Tensor:
        """Multiply x by e^gains [B, mels, T]; analysis and synthesis share the mel's frames and window."""
        return self._wave(self._spectrum(x) * self._spread(gains), x.shape[-1])

    def _spread(self, gains: Tensor) -> Tensor:
        """Gains of bands [B, mels, T] as factors of bins [B, bins, T]."""
        spread = self.mel.filterbank / (self.mel.filterbank.sum(dim=0, keepdim=True) + 1e-8)  # (mels, bins)
        return torch.exp(spread.T @ gains)

    def _spectrum(self, x: Tensor) -> Tensor:
        n_fft, hop = self.mel.n_fft, self.mel.hop
        pad = (n_fft - hop) // 2
        padded = F.pad(x.unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
        return torch.stft(padded, n_fft, hop, n_fft, self.mel.window, center=False, return_complex=True)

    def _wave(self, spectrum: Tensor, n_samples: int) -> Tensor:
        """Spectrum [B, bins, T] back to samples [B, n_samples]."""
        n_fft, hop, window = self.mel.n_fft, self.mel.hop, self.mel.window
        pad = (n_fft - hop) // 2
        frames = torch.fft.irfft(spectrum, dim=1) * window[:, None]  # (B, n_fft, T)
        energy = window.square()[None, :, None].expand(1, -1, frames.shape[-1])
        length = (1, n_samples + 2 * pad)
        added, norm = (F.fold(part, length, (1, n_fft), stride=(1, hop))[:, 0, 0] for part in (frames, energy))
        return (added / norm.clamp(min=ENERGY_FLOOR))[:, pad : pad + n_samples]
